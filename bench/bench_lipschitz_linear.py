"""lipschitz_linear: the layer against nn.Linear and ReLU, its floor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.bench_l1_ball import ADAM_STEP, RADIUS, rows
from bench.harness import Case, Provider
from bench.kinds import KINDS, multiplying
from bench.peers import l1_ball as l1_ball_peers
from bench.peers.compiled import compiled
from bench.peers.lipschitz_linear import NewtonLayer, ReluLayer, SortLayer
from bench.settings import PUBLIC, Settings, on_triton, peer
from bench.trained import density, trained_layers
from lipvae import functional
from lipvae._backend import kernel_module, obstacle
from lipvae.nn import LipschitzLinear

FLOOR, GEMM = "nn.Linear and ReLU", "bare GEMM"
SHAPES = [(784, 512), (512, 512), (1024, 1024)]
BATCHES = (1, 128, 4096)
# What the variant of a case says of its weight: torch's default for nn.Linear, which the projection
# leaves dense, or what training makes of it.
INITIAL, TRAINED = "", ", trained"
# On a GPU the products alone as well: in, out and batch.
PRODUCTS, PRODUCT_SHAPES = "products", [(4096, 4096, 4096), (1024, 1024, 128)]
SORTED = "LNets and deel-torchlip"


def alternating(layers: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Calls one layer after the other."""
    following = itertools.cycle(layers).__next__
    return lambda x: following()(x)


def steps_apart(weight: Tensor, bias: Tensor, radius: float = RADIUS) -> list[nn.Module]:
    """Two layers one optimiser step apart that share their thresholds.

    Called in turns, each starts Newton's method from the thresholds of slightly other weights, as
    in training, and not from its own solution.
    """
    out_features, in_features = weight.shape
    step = ADAM_STEP * torch.randn_like(weight).sign()
    layers: list[nn.Module] = []
    for value in (weight, weight + step):
        layer = LipschitzLinear(in_features, out_features, lipschitz=radius, group_size=2)
        layer = layer.to(weight.device)
        assert layer.bias is not None
        with torch.no_grad():
            layer.weight.copy_(value)
            layer.bias.copy_(bias)
        layers.append(layer)
    # One place for the thresholds of both. A hook that hands them on would be timed with us.
    layers[1]._buffers = layers[0]._buffers
    return layers


def _runs(direction: str, x: Tensor, grad: Tensor) -> Callable[[Any, list[Tensor]], Any]:
    def forward(layer: Callable[[Tensor], Tensor], _: list[Tensor]) -> Callable[[], Any]:
        return lambda: layer(x)

    def both(layer: Callable[[Tensor], Tensor], wrt: list[Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(layer(x), [x, *wrt], grad, allow_unused=True)

    return forward if direction == "forward" else both


def layer_case(
    direction: str,
    shape: tuple[int, int],
    batch: int,
    settings: Settings,
    *,
    state: str = INITIAL,
    compile_: bool = False,
) -> Case:
    """One direction: "forward", which records for the backward pass, or "forward and backward"."""
    in_features, out_features = shape
    radius, extra = RADIUS, {}
    if state == TRAINED:
        layers = trained_layers(out_features, settings.device)
        (layer,) = (it for it in layers if it.weight.shape == (out_features, in_features))
        weight, radius = layer.weight.detach().clone(), layer.lipschitz
        extra["density"] = density(layer)
    else:
        weight = rows("initial", (out_features, in_features), settings)
    bias = 0.1 * settings.randn(out_features, seed=4)
    x = settings.rand(batch, in_features, seed=5).requires_grad_()
    grad = settings.randn(batch, out_features, seed=6)
    out, weight_t = torch.empty(batch, out_features, device=settings.device), weight.t()
    run = _runs(direction, x, grad)
    ours = steps_apart(weight, bias, radius)
    floors: list[nn.Module] = [ReluLayer(*shape).to(settings.device) for _ in range(2)]

    def parameters(layers: list[nn.Module]) -> list[Tensor]:
        return [p for layer in layers for p in layer.parameters()]

    providers = [
        Provider(FLOOR, "limit", run(alternating(floors), parameters(floors)), graph=True),
        Provider(
            PUBLIC, "ours", run(alternating(ours), parameters(ours)), FLOOR, graph=True, extra=extra
        ),
    ]
    if direction == "forward":
        data = x.detach()
        providers.append(Provider(GEMM, "limit", lambda: torch.mm(data, weight_t, out=out)))
    skipped: dict[str, str] = {}
    steps = l1_ball_peers.newton_steps(weight, radius)

    def lnets() -> Callable[[], Any]:
        layer = SortLayer(weight, bias, radius)
        return run(layer, [layer.weight, layer.bias])

    def newton(wrap: Callable[[nn.Module], Any]) -> Callable[[], Any]:
        layer = NewtonLayer(weight, bias, radius, steps)
        return run(wrap(layer), [layer.weight, layer.bias])

    peer(providers, skipped, SORTED, lnets)
    peer(providers, skipped, "Newton, min and max, eager", lambda: newton(lambda layer: layer))
    if compile_:
        peer(providers, skipped, "Newton, min and max, compiled", lambda: newton(compiled))
    if settings.cuda:
        providers.append(on_triton(run(alternating(ours), parameters(ours)), graph=True))
    multiply = 2.0 * batch * in_features * out_features
    sizes = {"batch": batch, "in": in_features, "out": out_features}
    return Case(
        "lipschitz_linear", direction + state, sizes, x.dtype, providers, skipped=skipped,
        work={"operations": multiply * (1 if direction == "forward" else 3)},
    )  # fmt: skip


@torch.no_grad()
def product_case(kind: str, shape: tuple[int, int, int], settings: Settings) -> Case:
    """The layer without autograd against its bare product, by each way that the kernels can go.

    Args:
        kind: of the products, a key of `KINDS`.
        shape: in, out and batch.
        settings: of the run.
    """
    (in_features, out_features, batch), (dtype, _) = shape, KINDS[kind]
    weight = rows("initial", (out_features, in_features), settings).to(dtype)
    bias = (0.1 * settings.randn(out_features, seed=4)).to(dtype)
    x = settings.rand(batch, in_features, seed=5).to(dtype)
    out, weight_t = torch.empty(batch, out_features, device=x.device, dtype=dtype), weight.t()

    def ours() -> Tensor:
        return functional.lipschitz_linear(x, weight, bias, RADIUS, 2)

    def kernels(projecting: bool) -> Callable[[], Any]:
        forward = kernel_module("lipschitz_linear").lipschitz_linear_forward
        return lambda: forward(x, weight, bias, RADIUS, 2, False, projecting=projecting)

    def lnets() -> Callable[[], Any]:
        layer = SortLayer(weight, bias, RADIUS).requires_grad_(False)
        return lambda: layer(x)

    providers = [
        Provider(GEMM, "limit", lambda: torch.mm(x, weight_t, out=out), graph=True),
        Provider(PUBLIC, "ours", ours, graph=True),
    ]
    skipped: dict[str, str] = {}
    peer(providers, skipped, SORTED, lnets)
    for name, projecting in (("product that projects", True), ("projection, then product", False)):
        why = obstacle("triton", x.device, dtype)
        if why is None:
            providers.append(Provider(f"Triton, {name}", "ours", kernels(projecting), graph=True))
        else:
            skipped[f"Triton, {name}"] = why
    for provider in providers:
        provider.run = multiplying(kind, provider.run)
    return Case(
        "lipschitz_linear", f"{PRODUCTS}, {kind}",
        {"batch": batch, "in": in_features, "out": out_features}, dtype, providers,
        skipped=skipped, work={"operations": 2.0 * batch * in_features * out_features},
    )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    if settings.cuda:
        for kind in KINDS:
            for sizes in PRODUCT_SHAPES:
                yield product_case(kind, sizes, settings)
    shapes = SHAPES[:1] if settings.quick else SHAPES
    batches = (1, 128) if settings.quick else BATCHES
    for shape in shapes:
        for batch in batches:
            for direction in ("forward", "forward and backward"):
                compile_ = shape == shapes[0] and batch == 128
                compile_ &= not (settings.quick and direction == "forward")
                yield layer_case(direction, shape, batch, settings, compile_=compile_)
                yield layer_case(direction, shape, batch, settings, state=TRAINED)
