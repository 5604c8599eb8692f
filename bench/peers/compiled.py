"""torch.compile for peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled for the shapes of its first call.

    The cache of an earlier shape is dropped first, so that no case runs code that was made general
    for several shapes.
    """
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)
