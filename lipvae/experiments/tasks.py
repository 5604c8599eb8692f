"""Steps of an experiment: what is done already is skipped, what is left is estimated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A step whose result is kept on disk.

    Attributes:
        key: of the result; tasks of the same key make the same.
        label: in words.
        cost: its share of the work, in seconds on two cores or so; only ratios matter.
        done: whether the result is there.
        run: makes it.
    """

    key: str
    label: str
    cost: float
    done: Callable[[], bool]
    run: Callable[[], None]


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes.

    Example:
        >>> duration(75), duration(3720)
        ('1:15 min', '1:02 h')
    """
    whole = max(0, round(seconds))
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def run_all(
    tasks: Iterable[Task],
    report: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Runs what is not done, in order, and says what is left.

    The time left is that of the costs ahead at the pace of those behind.

    Args:
        tasks: of several with the same key, the first is run.
        report: takes a line of text.
        clock: seconds.

    Returns:
        Seconds spent.

    Example:
        >>> def nothing(): pass
        >>> lines = []
        >>> spent = run_all([Task("a", "train", 3.0, lambda: False, nothing)], lines.append)
        >>> lines[0]
        '[1/1] train'
    """
    first: dict[str, Task] = {}
    for task in tasks:
        first.setdefault(task.key, task)
    waiting = [task for task in first.values() if not task.done()]
    total = sum(task.cost for task in waiting)
    start, behind = clock(), 0.0
    for number, task in enumerate(waiting, 1):
        line = f"[{number}/{len(waiting)}] {task.label}"
        if behind:
            gone = clock() - start
            left = gone / behind * (total - behind)
            line += f" ({duration(gone)} gone, about {duration(left)} left)"
        report(line)
        task.run()
        behind += task.cost
    return clock() - start
