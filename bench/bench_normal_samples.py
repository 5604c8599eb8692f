"""normal_samples: a posterior's samples and their ratio of densities, against a copy of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import Case, Provider
from bench.peers import normal_samples as peers
from bench.settings import PUBLIC, Settings, copy_limits, peer
from lipvae import ops

# K, B, m; a thread of a scorer on a CPU takes 128 samples of eight images at a time.
SHAPES = [(128, 8, 10), (128, 8, 500), (128, 64, 10)]


def sample_case(k: int, b: int, m: int, settings: Settings) -> Case:
    loc, log_variance = (settings.randn(b, m, seed=i).double() for i in (0, 1))
    noise = settings.randn(k, m, seed=2).double()
    z, _ = ops.normal_samples(loc, log_variance, noise, torch.float32)
    arguments = (loc, log_variance, noise, torch.float32)
    providers = [
        *copy_limits(lambda: z, z),
        Provider(PUBLIC, "ours", lambda: ops.normal_samples(*arguments), graph=True),
    ]
    skipped: dict[str, str] = {}
    peer(providers, skipped, "eager", lambda: lambda: peers.eager(*arguments))
    return Case(
        "normal_samples", "float32 samples", {"K": k, "B": b, "m": m}, z.dtype, providers,
        skipped=skipped, work={"bytes": 4.0 * k * b * m},
    )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    for shape in SHAPES[:1] if settings.quick else SHAPES:
        yield sample_case(*shape, settings)
