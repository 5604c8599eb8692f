"""GroupSort along the last dimension."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness import Skip

# Comparators of sorting networks (Knuth, The Art of Computer Programming 3, section 5.3.4).
COMPARATORS = {
    2: [(0, 1)],
    4: [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2)],
    8: [
        *[(0, 1), (2, 3), (4, 5), (6, 7)],
        *[(0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6)],
        *[(0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5)],
        *[(1, 2), (3, 4), (5, 6)],
    ],
}


def torch_sort(x: Tensor, group_size: int) -> Tensor:
    """By torch.sort."""
    return x.unflatten(-1, (-1, group_size)).sort(-1).values.flatten(-2)


def min_max(x: Tensor, group_size: int) -> Tensor:
    """By a network of torch.minimum and torch.maximum; each halves the gradient of a tie."""
    lanes = list(x.unflatten(-1, (-1, group_size)).unbind(-1))
    for i, j in COMPARATORS[group_size]:
        lanes[i], lanes[j] = torch.minimum(lanes[i], lanes[j]), torch.maximum(lanes[i], lanes[j])
    return torch.stack(lanes, -1).flatten(-2)


def deel(group_size: int) -> Callable[[Tensor], Tensor]:
    """The layer of deel-torchlip, for inputs [B, n].

    Raises:
        Skip: if deel-torchlip is not installed.
    """
    try:
        torchlip = importlib.import_module("deel.torchlip")
    except ImportError as error:
        raise Skip(f"deel-torchlip is not installed ({error})") from error
    layer: Callable[[Tensor], Tensor] = torchlip.GroupSort(group_size)
    return layer
