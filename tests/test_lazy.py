"""Properties that are computed once, by threads that do not wait for each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from lipvae._lazy import lazy


def test_computed_once_and_documented() -> None:
    calls = []

    class Thing:
        @lazy
        def value(self) -> int:
            """What it is."""
            calls.append(1)
            return 7

    thing = Thing()
    assert thing.value == thing.value == 7
    assert len(calls) == 1
    assert Thing.value.__doc__ == "What it is."


def test_threads_compute_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=30)

    class Thing:
        @lazy
        def value(self) -> int:
            return together.wait()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda thing: thing.value, (Thing(), Thing())))
    assert sorted(found) == [0, 1]
