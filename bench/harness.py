"""Times providers of one case interleaved, so that each ratio comes from one stretch of time.

A *case* is one op at one shape. Its *providers* are ours, the peers, and the limits that physics
sets (a copy, a bare matrix product). Round after round each provider gets one sample, in a shuffled
order; a ratio is the median over rounds of the two samples of a round, so that a drift of the
machine touches both alike.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bench.memory import peak_extra_bytes

Role = Literal["ours", "peer", "limit"]

# Below this a call is repeated inside one sample: the clock and the loop cost about 0.1 us.
SAMPLE_SECONDS = 5e-4
# A GPU idles until Python has reached the first launch.
GPU_SAMPLE_SECONDS = 5e-3
# A provider slower than this does not gain from an untimed call that brings its data back to cache.
REHEAT_SECONDS = 5e-3


class Skip(Exception):
    """A provider or a case that cannot run here; the message says why."""


@dataclass
class Provider:
    """One way to do the work of a case.

    Attributes:
        name: as printed.
        role: "ours", "peer" or "limit".
        run: does the work once.
        against: the limit that this provider is compared to, by name; the first limit by default.
        peer_of: for a peer, the one of ours it is compared to; the first of ours by default.
        memory: whether to measure the peak of memory beyond what was there before.
        graph: on a GPU, whether to time it inside a CUDA graph as well, without launch costs.
        extra: further facts for the row, such as an error.
    """

    name: str
    role: Role
    run: Callable[[], Any]
    against: str | None = None
    peer_of: str | None = None
    memory: bool = False
    graph: bool = False
    extra: dict[str, float] = field(default_factory=dict)


@dataclass
class Case:
    """One op at one shape.

    Attributes:
        op: the op's name, as in lipvae/ops.
        variant: what distinguishes the case: direction, family, distribution of the rows.
        shape: sizes by name.
        dtype: of the data.
        providers: what to time.
        data: "resident" if every call sees the same buffers, which a cache may hold; "streamed" if
            calls cycle through buffers that together exceed it.
        skipped: providers that cannot run here, and why.
        work: bytes and operations that the case cannot avoid, for rooflines.
    """

    op: str
    variant: str
    shape: dict[str, int]
    dtype: torch.dtype
    providers: list[Provider]
    data: str = "resident"
    skipped: dict[str, str] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How long to measure a case.

    Attributes:
        seconds: for all providers together.
        min_rounds: samples of even the slowest provider.
        max_rounds: samples of the fastest.
    """

    seconds: float = 1.5
    min_rounds: int = 3
    max_rounds: int = 200


@dataclass
class Timing:
    """Samples of one provider, seconds a call, by round."""

    samples: dict[int, float] = field(default_factory=dict)
    calls: int = 1

    def quantile(self, q: float) -> float:
        """The q-quantile of the samples, by linear interpolation."""
        return quantile(list(self.samples.values()), q)

    def ratio_to(self, other: Timing) -> float:
        """Median over common rounds of this time over the other's."""
        common = [i for i in self.samples if i in other.samples]
        if not common:
            return self.quantile(0.5) / other.quantile(0.5)
        return statistics.median(self.samples[i] / other.samples[i] for i in common)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class CpuTimer:
    """Wall-clock time of calls that finish before they return."""

    def __call__(self, run: Callable[[], Any], calls: int) -> float:
        """Seconds a call."""
        start = time.perf_counter_ns()
        for _ in range(calls):
            run()
        return (time.perf_counter_ns() - start) * 1e-9 / calls


class CudaTimer:
    """Time on the device between two events around the calls."""

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def __call__(self, run: Callable[[], Any], calls: int) -> float:
        """Seconds a call."""
        torch.cuda.synchronize()
        self._start.record()
        for _ in range(calls):
            run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3 / calls


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` as the replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@contextmanager
def without_collector() -> Iterator[None]:
    """Keeps Python's garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def schedule(rounds: int, total: int) -> set[int]:
    """`rounds` of `total` rounds, spread evenly."""
    return {i * total // rounds for i in range(rounds)}


def measure(
    providers: Sequence[Provider],
    budget: Budget,
    timer: Callable[[Callable[[], Any], int], float],
    seed: int = 0,
    sample_seconds: float = SAMPLE_SECONDS,
) -> dict[str, Timing]:
    """Times the providers interleaved.

    Args:
        providers: what to time, each called before; names must differ.
        budget: time and rounds.
        timer: seconds a call, given a callable and a number of calls.
        seed: of the order within a round.
        sample_seconds: below this a call is repeated inside one sample.

    Returns:
        Timings by name.
    """
    if len({p.name for p in providers}) != len(providers):
        raise ValueError(f"provider names must differ, got {[p.name for p in providers]}")
    share = budget.seconds / max(len(providers), 1)
    timings, plans, reheat = {}, {}, {}
    with without_collector():
        for provider in providers:
            once = timer(provider.run, 1)
            if once < REHEAT_SECONDS:
                once = min(once, timer(provider.run, 1))
            calls = max(1, round(sample_seconds / max(once, 1e-9)))
            reheat[provider.name] = once < REHEAT_SECONDS
            cost = once * (calls + reheat[provider.name])
            rounds = int(share / max(cost, 1e-9))
            plans[provider.name] = max(budget.min_rounds, min(budget.max_rounds, rounds))
            timings[provider.name] = Timing(calls=calls)
        total = max(plans.values())
        plan = {name: schedule(rounds, total) for name, rounds in plans.items()}
        order, shuffle = list(providers), random.Random(seed)
        for i in range(total):
            shuffle.shuffle(order)
            for provider in order:
                if i not in plan[provider.name]:
                    continue
                if reheat[provider.name]:
                    provider.run()
                timing = timings[provider.name]
                timing.samples[i] = timer(provider.run, timing.calls)
    return timings


def _with_graphs(providers: Sequence[Provider], skipped: dict[str, str]) -> list[Provider]:
    """On a GPU, adds each launch-bound provider once more as a replayed graph.

    Its limit is a replayed graph too, whichever the provider's own limit is.
    """
    found = list(providers)
    limits: list[str] = []  # that were captured
    for provider in sorted(providers, key=lambda provider: provider.role != "limit"):
        if provider.graph:
            name = f"{provider.name}, graph"
            limit = provider.against if provider.against in limits else next(iter(limits), None)
            if provider.role != "limit" and limit is None:
                skipped[name] = "no limit of this case is captured"
                continue
            try:
                run = captured(provider.run)
            except RuntimeError as error:
                skipped[name] = f"cannot be captured: {error}"
                continue
            if provider.role == "limit":
                limits.append(provider.name)
            against = f"{limit}, graph" if limit else None
            found.append(Provider(name, provider.role, run, against, provider.peer_of))
    return found


def run_case(case: Case, budget: Budget, device: str) -> list[dict[str, Any]]:
    """Times one case and returns a row for each provider.

    A peer that fails (a compiler that is missing, say) is left out and named in `case.skipped`;
    a failure of ours is raised.
    """
    providers = []
    for provider in case.providers:
        try:
            provider.run()
        except Exception as error:
            if provider.role == "ours":
                raise
            case.skipped[provider.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        providers.append(provider)
    cuda = device == "cuda"
    if cuda:
        providers = _with_graphs(providers, case.skipped)
    sample_seconds = GPU_SAMPLE_SECONDS if cuda else SAMPLE_SECONDS
    timings = measure(
        providers, budget, CudaTimer() if cuda else CpuTimer(), sample_seconds=sample_seconds
    )
    limits = [p.name for p in providers if p.role == "limit"]
    ours = [p.name for p in providers if p.role == "ours"]
    rows = []
    for provider in providers:
        timing = timings[provider.name]
        against = provider.against if provider.against in timings else next(iter(limits), None)
        rival = provider.peer_of if provider.peer_of in timings else next(iter(ours), None)
        is_limit, is_peer = provider.role == "limit", provider.role == "peer"
        row = {
            "op": case.op,
            "variant": case.variant,
            "shape": case.shape,
            "dtype": str(case.dtype).removeprefix("torch."),
            "data": case.data,
            "provider": provider.name,
            "role": provider.role,
            "median_s": timing.quantile(0.5),
            "q10_s": timing.quantile(0.1),
            "q90_s": timing.quantile(0.9),
            "rounds": len(timing.samples),
            "calls": timing.calls,
            "limit": None if is_limit else against,
            "to_limit": timing.ratio_to(timings[against]) if against and not is_limit else None,
            "rival": rival if is_peer else None,
            "to_ours": timing.ratio_to(timings[rival]) if is_peer and rival else None,
            "peak_extra_bytes": peak_extra_bytes(provider.run, device) if provider.memory else None,
            "extra": provider.extra,
            "work": case.work,
        }
        rows.append(row)
    return rows
