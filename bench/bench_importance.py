"""importance: log p(x | z_k) from the decoder's output, against one read of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness import Case, Provider
from bench.machine import cache_bytes
from bench.peers import importance as peers
from bench.peers.compiled import compiled
from bench.settings import CLONE, COPY, KERNEL, PUBLIC, Settings, on_reference, peer, vjp
from lipvae import functional, reference
from lipvae._backend import cpp_availability
from lipvae.ops.importance import FAMILY_CODES

READ = "one read (sum)"
# K, B, D. The first exceeds the cache of most CPUs, the second fits. Where none does, one more case
# exceeds it.
SHAPES = [(128, 128, 784), (128, 16, 784), (128, 32, 3072)]
QUICK_SHAPES = [(128, 128, 784), (128, 16, 784)]
# Beyond any GPU's cache.
CUDA_SHAPE = (256, 1024, 784)
FAMILY_SHAPES = {
    "continuous_bernoulli": (128, 128, 784),
    "gaussian": (64, 128, 784),
    "discretized_logistic": (64, 128, 784),
    "categorical256": (8, 8, 784),
}


def inputs(family: str, shape: tuple[int, int, int], settings: Settings) -> tuple[Tensor, Tensor]:
    """Parameters [K, B, P * D] and grey pixels [B, D] of 256 levels."""
    k, b, d = shape
    count = reference.FAMILIES[family].parameters_per_dim
    parameters = settings.randn(k, b, count * d)
    if count == 1:
        parameters *= 3
    if count == 2:
        parameters[..., :d].mul_(0.2).add_(0.5)
        parameters[..., d:].mul_(0.3).sub_(2)
    return parameters, (settings.rand(b, d, seed=1) * 255).round() / 255


def _shape(family: str, parameters: Tensor, target: Tensor) -> dict[str, int]:
    k, b, _ = parameters.shape
    return {"K": k, "B": b, "D": target.shape[1]}


def forward_case(
    family: str, shape: tuple[int, int, int], settings: Settings, *, compile_: bool
) -> Case:
    parameters, target = inputs(family, shape, settings)
    k, b, d = shape
    out = torch.empty(k, b, device=settings.device)
    providers = [Provider(READ, "limit", lambda: parameters.sum(), graph=True)]
    if settings.cuda:
        copy = torch.empty_like(parameters)
        providers.append(Provider(COPY, "limit", lambda: copy.copy_(parameters), graph=True))
    module = cpp_availability().module
    if module is not None and not settings.cuda:
        threads, code = torch.get_num_threads(), FAMILY_CODES[family]
        providers.append(
            Provider(
                KERNEL, "ours",
                lambda: module.importance_forward(
                    parameters.data_ptr(), target.data_ptr(), out.data_ptr(), k, b, d, code, 0,
                    threads,
                ),
            )
        )  # fmt: skip
    truth = float64_truth(parameters, target, family)
    result = functional.importance_log_likelihood(parameters, target, family)
    error = float(((result.double() - truth) / truth).abs().max())
    providers.append(
        Provider(
            PUBLIC, "ours",
            lambda: functional.importance_log_likelihood(parameters, target, family),
            graph=True, extra={"relative_error": error},
        )
    )  # fmt: skip
    if shape == SHAPES[1]:
        providers.append(on_reference(providers[-1].run))
    skipped: dict[str, str] = {}
    peer(
        providers,
        skipped,
        "eager",
        lambda: lambda: peers.PEERS[family](parameters, target),
        peer_of=PUBLIC,
    )
    if family == "bernoulli":
        peer(
            providers, skipped, "eager, x l - softplus(l)",
            lambda: lambda: peers.bernoulli_formula(parameters, target), peer_of=PUBLIC,
        )  # fmt: skip
    if compile_:
        function = peers.bernoulli_formula if family == "bernoulli" else peers.PEERS[family]
        fast = compiled(function)
        peer(
            providers, skipped, "compiled", lambda: lambda: fast(parameters, target), peer_of=PUBLIC
        )
    return Case(
        "importance", f"forward, {family}", _shape(family, parameters, target), parameters.dtype,
        providers, skipped=skipped, work={"bytes": 4.0 * parameters.numel()},
    )  # fmt: skip


def float64_truth(parameters: Tensor, target: Tensor, family: str) -> Tensor:
    """Float64 truth, sample by sample so that memory stays small."""
    return torch.cat(
        [reference.importance(p[None].double(), target.double(), family) for p in parameters]
    )


def backward_case(family: str, shape: tuple[int, int, int], settings: Settings) -> Case:
    parameters, target = inputs(family, shape, settings)
    grad = settings.randn(*shape[:2], seed=2)
    out = torch.empty_like(parameters)
    providers = [
        Provider("copy", "limit", lambda: out.copy_(parameters)),
        Provider(CLONE, "limit", lambda: parameters.clone()),
    ]
    module = cpp_availability().module
    if module is not None and not settings.cuda:
        threads, code = torch.get_num_threads(), FAMILY_CODES[family]
        providers.append(
            Provider(
                KERNEL, "ours",
                lambda: module.importance_backward(
                    grad.data_ptr(), parameters.data_ptr(), target.data_ptr(), out.data_ptr(),
                    *shape, code, 0, threads,
                ),
            )
        )  # fmt: skip

    def ours(p: Tensor) -> Tensor:
        return functional.importance_log_likelihood(p, target, family)

    providers.append(Provider(PUBLIC, "ours", vjp(ours, [parameters], grad), CLONE))
    skipped: dict[str, str] = {}
    function = peers.bernoulli_formula if family == "bernoulli" else peers.PEERS[family]
    peer(
        providers, skipped, "eager",
        lambda: vjp(lambda p: function(p, target), [parameters], grad), peer_of=PUBLIC,
    )  # fmt: skip
    return Case(
        "importance", f"backward, {family}", _shape(family, parameters, target), parameters.dtype,
        providers, skipped=skipped, work={"bytes": 8.0 * parameters.numel()},
    )  # fmt: skip


def shapes(settings: Settings) -> list[tuple[int, int, int]]:
    """The shapes to measure, at least one of them beyond the device's cache."""
    if settings.quick:
        return QUICK_SHAPES
    if settings.cuda:
        return [*SHAPES, CUDA_SHAPE]
    k, b, d = max(SHAPES, key=math.prod)
    wanted = 1.25 * cache_bytes()
    return SHAPES if 4 * k * b * d > wanted else [*SHAPES, (k, math.ceil(wanted / (4 * k * d)), d)]


def cases(settings: Settings) -> Iterator[Case]:
    for shape in shapes(settings):
        compile_ = shape == SHAPES[0] or not settings.quick
        yield forward_case("bernoulli", shape, settings, compile_=compile_)
    for family, shape in FAMILY_SHAPES.items():
        yield forward_case(family, shape, settings, compile_=not settings.quick)
    for shape in SHAPES[1:2] if settings.quick else SHAPES[:2]:
        yield backward_case("bernoulli", shape, settings)
    if not settings.quick:
        for family, (k, b, d) in FAMILY_SHAPES.items():
            yield backward_case(family, (k, b // 8, d) if b > 8 else (k, b, d), settings)
