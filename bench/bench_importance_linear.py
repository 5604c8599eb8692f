"""importance_linear: the decoder's last layer fused with the reduction, against the bare GEMM."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import linear

from bench.harness import Case, Provider
from bench.kinds import KINDS, multiplying
from bench.peers import importance as peers
from bench.settings import PUBLIC, Settings, on_triton, peer
from lipvae import ops, reference

GEMM = "bare GEMM"
HIDDEN = 512
# K, B, D.
SHAPES = [(128, 128, 3072), (128, 128, 784), (128, 128, 196), (1024, 16, 784)]
QUICK_SHAPES = [(128, 16, 3072)]
FAMILY_SHAPES = {
    "continuous_bernoulli": (128, 16, 784),
    "gaussian": (128, 16, 784),
    "discretized_logistic": (128, 16, 784),
    "categorical256": (128, 1, 784),
}


@torch.no_grad()
def fused_case(
    family: str, shape: tuple[int, int, int], settings: Settings, kind: str = "float32"
) -> Case:
    (k, b, d), (dtype, _) = shape, KINDS[kind]
    count = reference.FAMILIES[family].parameters_per_dim
    hidden = settings.randn(k, b, HIDDEN).relu().to(dtype)
    weight = (settings.randn(count * d, HIDDEN, seed=1) * HIDDEN**-0.5).to(dtype)
    bias = (0.1 * settings.randn(count * d, seed=2)).to(dtype)
    target = (settings.rand(b, d, seed=3) * 255).round() / 255
    rows, weight_t = hidden.view(k * b, HIDDEN), weight.t()
    logits = torch.empty(k * b, count * d, device=settings.device, dtype=dtype)

    @torch.no_grad()
    def fused() -> torch.Tensor:
        return ops.importance_linear(hidden, weight, bias, target, family)

    @torch.no_grad()
    def two_steps() -> torch.Tensor:
        parameters = linear(hidden, weight, bias)
        return ops.importance(parameters, target, family)

    @torch.no_grad()
    def eager() -> torch.Tensor:
        return peers.PEERS[family](linear(hidden, weight, bias), target)

    providers = [
        Provider(GEMM, "limit", lambda: torch.mm(rows, weight_t, out=logits), graph=True),
        Provider(PUBLIC, "ours", fused, memory=True, graph=True),
        Provider("lipvae, unfused", "ours", two_steps, memory=True),
    ]
    skipped: dict[str, str] = {}
    peer(providers, skipped, "eager", lambda: eager, memory=True)
    if settings.cuda and kind == "float32":
        providers.append(on_triton(fused, graph=True))
    for provider in providers:
        provider.run = multiplying(kind, provider.run)
    work = {"operations": 2.0 * k * b * HIDDEN * count * d, "logits_bytes": float(logits.nbytes)}
    how = "" if kind == "float32" else f", {kind}"
    return Case(
        "importance_linear", f"forward, {family}{how}", {"K": k, "B": b, "D": d, "H": HIDDEN},
        hidden.dtype, providers, skipped=skipped, work=work,
    )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    for shape in QUICK_SHAPES if settings.quick else SHAPES:
        for kind in KINDS if settings.cuda else ["float32"]:
            yield fused_case("bernoulli", shape, settings, kind)
    if not settings.quick:
        for family, shape in FAMILY_SHAPES.items():
            yield fused_case(family, shape, settings)
