"""importance_statistics: all statistics over k in one call, against one read of the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness import Case, Provider
from bench.peers import importance_statistics as peers
from bench.settings import PUBLIC, Settings, peer
from lipvae.statistics import ImportanceAccumulator, ImportanceStatistics

READ = "sum"
# K, B; a thread of a scorer on a CPU takes 128 samples of eight images at a time.
SHAPES = [(128, 8), (128, 64), (2048, 64)]


def statistics_case(k: int, b: int, settings: Settings) -> Case:
    # As a decoder on a CPU leaves them: the samples of an image side by side.
    ll, ratio = settings.randn(b, k).t(), settings.randn(b, k, seed=1).double().t()

    def ours() -> ImportanceStatistics:
        accumulator = ImportanceAccumulator()
        accumulator.update(ll, ratio)
        return accumulator.statistics()

    providers = [
        Provider(READ, "limit", lambda: (ll.sum(), ratio.sum()), graph=True),
        Provider(PUBLIC, "ours", ours, graph=True),
    ]
    skipped: dict[str, str] = {}
    peer(providers, skipped, "eager", lambda: lambda: peers.eager(ll, ratio))
    return Case(
        "importance_statistics", "one chunk", {"K": k, "B": b}, ll.dtype, providers,
        skipped=skipped, work={"bytes": 12.0 * k * b},
    )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    for shape in SHAPES[:1] if settings.quick else SHAPES:
        yield statistics_case(*shape, settings)
