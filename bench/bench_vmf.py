"""vmf: samples of the von Mises-Fisher distribution, against normal numbers of that count."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import Case, Provider, Skip
from bench.peers import vmf as peers
from bench.settings import PUBLIC, Settings, peer
from lipvae import functional

NORMALS = "torch.randn"
DIMENSIONS = (2, 3, 10, 50, 200, 1000)
# Numbers drawn in one call, and the mean directions among which they are shared.
NUMBERS, BATCH = 1_000_000, 128


def concentrations(m: int, quick: bool) -> tuple[float, ...]:
    """In between; for two dimensions also nearly uniform and concentrated."""
    return (float(m),) if quick or m not in (10, 200) else (0.1 * m, float(m), 20.0 * m)


def sample_case(m: int, kappa: float, settings: Settings) -> Case:
    sample_vmf = getattr(functional, "sample_vmf", None)
    if sample_vmf is None:
        raise Skip("this version has no lipvae.functional.sample_vmf")
    loc = torch.nn.functional.normalize(settings.randn(BATCH, m), dim=-1)
    concentration = torch.full((BATCH,), kappa, device=settings.device)
    n = max(1, NUMBERS // (BATCH * m))
    providers = [
        Provider(NORMALS, "limit", lambda: torch.randn(n, BATCH, m, device=settings.device)),
        Provider(PUBLIC, "ours", lambda: sample_vmf(loc, concentration, (n,))),
    ]
    skipped: dict[str, str] = {}
    if not settings.cuda:
        peer(
            providers, skipped, "scipy, one direction",
            lambda: lambda: peers.scipy_sample(loc[0], kappa, n * BATCH),
        )  # fmt: skip
        peer(
            providers, skipped, "Wood, eager",
            lambda: lambda: peers.wood_sample(loc, concentration, n),
        )  # fmt: skip
    return Case(
        "vmf", f"kappa={kappa:g}", {"samples": n * BATCH, "m": m}, loc.dtype, providers,
        skipped=skipped, work={"bytes": 4.0 * n * BATCH * m, "samples": float(n * BATCH)},
    )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    for m in (3, 10, 200) if settings.quick else DIMENSIONS:
        for kappa in concentrations(m, settings.quick):
            yield sample_case(m, kappa, settings)
