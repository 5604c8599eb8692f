"""Peak memory that a call takes beyond what the process held before."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_STATUS} has no {field}")
    return int(found.group(1)) * 1024


# What glibc's mallopt() sets, and what its own adaptation comes to when a program frees 32 MB in
# one block: smaller blocks stay with the process.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_ADAPTED = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}
_GIVING_BACK = {_MMAP_THRESHOLD: 64 << 10, _TRIM_THRESHOLD: 64 << 10, _TOP_PAD: 0}


@contextmanager
def _pages_given_back() -> Iterator[None]:
    """Freed blocks go back to the system at once, so that holes between blocks do not count."""
    libc = ctypes.CDLL(None)
    mallopt, trim = getattr(libc, "mallopt", None), getattr(libc, "malloc_trim", None)
    if mallopt is None or trim is None:
        yield
        return
    try:
        for name, value in _GIVING_BACK.items():
            mallopt(name, value)
        gc.collect()
        trim(0)
        yield
    finally:
        for name, value in _ADAPTED.items():
            mallopt(name, value)


def peak_extra_bytes(run: Callable[[], Any], device: str = "cpu") -> int | None:
    """Peak memory during `run()` minus memory before it, in bytes.

    On a CPU it is resident memory as Linux counts it: every allocation that is touched, whoever
    makes it. None where the system does not tell.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        run()
        with _pages_given_back():
            _CLEAR_REFS.write_text("5")
            before = _resident("VmRSS")
            run()
            return max(0, _resident("VmHWM") - before)
    except (OSError, RuntimeError):
        return None
