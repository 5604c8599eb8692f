"""Peak memory that a call takes beyond what the process held before."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
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


def _trim() -> None:
    """Hands freed memory back, so that reusing it counts as taking it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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
        _trim()
        _CLEAR_REFS.write_text("5")
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, RuntimeError):
        return None
