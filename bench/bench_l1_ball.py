"""l1_ball: projection of rows onto the L1 ball, against a copy of the weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness import Case, Provider
from bench.peers import l1_ball as peers
from bench.peers.compiled import compiled
from bench.settings import (
    CLONE,
    COPY,
    KERNEL,
    PUBLIC,
    WARM,
    Settings,
    copy_limits,
    on_reference,
    peer,
    vjp,
)
from lipvae import functional, reference
from lipvae._backend import cpp_availability

# r of each of three layers whose composition is 5-Lipschitz, the default for m = 10.
RADIUS = 5 ** (1 / 3)
# What a step of Adam moves every weight by, at its usual rate.
ADAM_STEP = 1e-3
# Filter banks: 3x3 filters of 32 and of 128 channels, flattened.
SHAPES = [(512, 784), (64, 288), (256, 1152), (1024, 1024), (2048, 2048), (4096, 4096)]
QUICK_SHAPES = [(512, 784), (64, 288), (1024, 1024)]


def rows(kind: str, shape: tuple[int, int], settings: Settings) -> Tensor:
    """Weights as layers hold them.

    "initial": torch's default for nn.Linear, far outside the ball. "boundary": L1 norms within a
    thousandth of the radius, on either side. "heavy": Student's t with two degrees of freedom, a
    few large entries as after training. "tiny ball": radius below a millionth of the peak.
    """
    bound = 1 / math.sqrt(shape[1])
    uniform = (2 * settings.rand(*shape) - 1) * bound
    if kind == "initial":
        return uniform
    if kind == "boundary":
        off = 1 + 1e-3 * (2 * settings.rand(shape[0], 1, seed=1) - 1)
        return uniform * (RADIUS * off / uniform.abs().sum(1, keepdim=True))
    normal, other = settings.randn(*shape), settings.randn(2, *shape, seed=1)
    heavy = normal / other.square().mean(0).sqrt() * bound
    return heavy * (1e7 * RADIUS / heavy.abs().max()) if kind == "tiny ball" else heavy


def relative_error(projected: Tensor, weight: Tensor) -> float:
    """Largest error of an entry against float64 truth, relative to the row's radius."""
    truth = reference.project_l1_ball(weight.double(), RADIUS)
    return float((projected.double() - truth).abs().max() / RADIUS)


def _kernels(weight: Tensor, source, out: Tensor) -> list[Provider]:  # type: ignore[no-untyped-def]
    module = cpp_availability().module
    if module is None or weight.is_cuda:
        return []
    count, cols = weight.shape
    threads = torch.get_num_threads()
    tau = torch.empty(count, dtype=torch.float64)
    # The thresholds one step of the optimiser ago.
    sign = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).sign()
    warm = reference.l1_ball_threshold(weight - ADAM_STEP * sign, RADIUS)

    def forward(start: int) -> None:
        module.l1_ball_forward(
            source().data_ptr(), count, cols, RADIUS, start, out.data_ptr(), tau.data_ptr(), 0,
            threads,
        )  # fmt: skip

    forward(0)
    error = {"relative_error": relative_error(out, weight)}
    return [
        Provider(KERNEL, "ours", lambda: forward(0), COPY, extra=error),
        Provider(WARM, "ours", lambda: forward(warm.data_ptr()), COPY),
    ]


def forward_case(
    kind: str, shape: tuple[int, int], settings: Settings, *, streamed: bool, compile_: bool
) -> Case:
    weight = rows(kind, shape, settings)
    source = settings.ring(weight, streamed)
    out = torch.empty_like(weight)
    graph = not streamed  # it would read the same buffer at every replay
    providers = copy_limits(source, weight, graph=graph) + _kernels(weight, source, out)
    projected = functional.project_l1_ball(weight, RADIUS)
    public = Provider(
        PUBLIC, "ours", lambda: functional.project_l1_ball(source(), RADIUS), CLONE,
        graph=graph, extra={"relative_error": relative_error(projected, weight)},
    )  # fmt: skip
    providers.append(public)
    skipped: dict[str, str] = {}
    affordable = weight.numel() < 5e6 or kind == "initial"
    if shape == SHAPES[0]:
        providers.append(on_reference(public.run))
    if affordable:
        peer(
            providers, skipped, "sort (LNets)",
            lambda: lambda: peers.sort_projection(source(), RADIUS), peer_of=PUBLIC,
        )  # fmt: skip
    steps = peers.newton_steps(weight, RADIUS)
    if affordable:
        peer(
            providers, skipped, "Newton, eager",
            lambda: lambda: peers.newton_projection(source(), RADIUS, steps), peer_of=PUBLIC,
        )  # fmt: skip
    if compile_:
        fast = compiled(peers.newton_projection)
        peer(
            providers, skipped, "Newton, compiled",
            lambda: lambda: fast(source(), RADIUS, steps), peer_of=PUBLIC,
        )  # fmt: skip
    return Case(
        "l1_ball", f"forward, {kind} rows", dict(zip(("rows", "cols"), shape, strict=True)),
        weight.dtype, providers, "streamed" if streamed else "resident", skipped,
        {"bytes": 2 * 4 * weight.numel(), "newton_steps": steps},
    )  # fmt: skip


def backward_case(kind: str, shape: tuple[int, int], settings: Settings) -> Case:
    weight, grad = rows(kind, shape, settings), settings.randn(*shape, seed=3)
    out = torch.empty_like(weight)
    limit = "read two, write one"
    providers = [
        Provider(limit, "limit", lambda: torch.add(grad, weight, out=out)),
        Provider(
            "allocating add", "limit", lambda: grad + weight,
        ),
    ]  # fmt: skip
    module = cpp_availability().module
    if module is not None and not settings.cuda:
        tau = reference.l1_ball_threshold(weight, RADIUS)
        threads = torch.get_num_threads()
        providers.append(
            Provider(
                KERNEL, "ours",
                lambda: module.l1_ball_backward(
                    grad.data_ptr(), weight.data_ptr(), tau.data_ptr(), out.data_ptr(), *shape, 0,
                    threads,
                ),
                limit,
            )
        )  # fmt: skip
    ours = vjp(lambda w: functional.project_l1_ball(w, RADIUS), [weight], grad)
    providers.append(Provider(PUBLIC, "ours", ours, "allocating add"))
    skipped: dict[str, str] = {}
    steps = peers.newton_steps(weight, RADIUS)
    peer(
        providers, skipped, "Newton, eager",
        lambda: vjp(
            lambda w: peers.newton_projection_exact_gradient(w, RADIUS, steps), [weight], grad
        ),
        peer_of=PUBLIC,
    )  # fmt: skip
    return Case(
        "l1_ball", f"backward, {kind} rows", dict(zip(("rows", "cols"), shape, strict=True)),
        weight.dtype, providers, skipped=skipped, work={"bytes": 3 * 4 * weight.numel()},
    )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    shapes = QUICK_SHAPES if settings.quick else SHAPES
    for shape in shapes:
        for kind in ("initial", "boundary", "heavy"):
            compile_ = kind == "initial" and shape == shapes[0]
            if not settings.quick:
                compile_ |= shape == shapes[0] or (kind == "initial" and shape == shapes[-1])
            yield forward_case(kind, shape, settings, streamed=False, compile_=compile_)
    yield forward_case("tiny ball", shapes[0], settings, streamed=False, compile_=False)
    yield forward_case("initial", shapes[0], settings, streamed=True, compile_=False)
    for shape in (shapes[0], shapes[-1]):
        yield backward_case("heavy", shape, settings)
