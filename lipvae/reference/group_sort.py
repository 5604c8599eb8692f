"""GroupSort: ascending sort inside groups of neighbours (Anil, Lucas & Grosse 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Network = tuple[tuple[int, int], ...]

# Sorting networks by group size. A comparator (i, j) swaps iff x_i > x_j. Kernels and reference
# share the table, so that the recorded outcomes mean the same everywhere.
NETWORKS: dict[int, Network] = {
    2: ((0, 1),),
    4: ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)),
    8: (
        (0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6),
        (0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6),
    ),
}  # fmt: skip


def _grouped(x: Tensor, group_size: int, dim: int) -> Tensor:
    """[..., n, ...] -> [outer, groups, group_size, inner]."""
    dim = dim % x.dim()
    inner = math.prod(x.shape[dim + 1 :])
    groups = x.shape[dim] // group_size
    return x.reshape(math.prod(x.shape[:dim]), groups, group_size, inner)


def group_sort(x: Tensor, group_size: int = 2, dim: int = -1) -> Tensor:
    """Sorts ascending inside groups of `group_size` neighbours along `dim`.

    Args:
        x: any shape; the length along `dim` is a multiple of `group_size`.
        group_size: g >= 1; 2 is MaxMin.
        dim: dimension whose neighbours form groups.

    Returns:
        The shape and dtype of `x`.
    """
    return _grouped(x, group_size, dim).sort(dim=2, stable=True).values.reshape(x.shape)


def group_sort_backward(grad: Tensor, x: Tensor, group_size: int = 2, dim: int = -1) -> Tensor:
    """Gradient of :func:`group_sort`: each output's gradient goes to the input it came from.

    Args:
        grad: the shape of `x`, gradient with respect to the sorted tensor.
        x: the input of the forward pass.
        group_size: g >= 1.
        dim: dimension whose neighbours form groups.

    Returns:
        The shape of `x`. The sort is a permutation, so elements that tie get one gradient each.
    """
    source = _grouped(x, group_size, dim).argsort(dim=2, stable=True)
    grouped = _grouped(grad, group_size, dim)
    return torch.zeros_like(grouped).scatter_(2, source, grouped).reshape(grad.shape)


def _pack(outcome: Tensor) -> Tensor:
    """bool [C, outer, pairs] -> uint8 [C, outer, ceil(pairs / 8)], first pair in the lowest bit."""
    short = -outcome.shape[-1] % 8
    bits = torch.nn.functional.pad(outcome.to(torch.uint8), (0, short)).unflatten(-1, (-1, 8))
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=outcome.device)
    return (bits * place).sum(-1, dtype=torch.uint8)


def _unpack(code: Tensor, pairs: int) -> Tensor:
    place = torch.arange(8, dtype=torch.uint8, device=code.device)
    return ((code.unsqueeze(-1) >> place) & 1).flatten(-2)[..., :pairs].bool()


def group_sort_network(x: Tensor, group_size: int = 2, dim: int = -1) -> tuple[Tensor, Tensor]:
    """:func:`group_sort` through the sorting network, with the comparators' outcomes.

    Args:
        x: any shape; the length along `dim` is a multiple of `group_size`.
        group_size: a key of `NETWORKS`.
        dim: dimension whose neighbours form groups.

    Returns:
        The sorted tensor, and the code uint8 [comparators, outer, ceil(groups * inner / 8)]:
        bit ``p % 8`` of byte ``p // 8`` says whether the comparator swapped in group p.
    """
    lanes = list(_grouped(x, group_size, dim).unbind(2))
    outcomes = []
    for i, j in NETWORKS[group_size]:
        swap = lanes[i] > lanes[j]
        lanes[i], lanes[j] = (
            torch.where(swap, lanes[j], lanes[i]),
            torch.where(swap, lanes[i], lanes[j]),
        )
        outcomes.append(swap.flatten(1))
    return torch.stack(lanes, 2).reshape(x.shape), _pack(torch.stack(outcomes))


def group_sort_network_backward(
    grad: Tensor, code: Tensor, group_size: int = 2, dim: int = -1
) -> Tensor:
    """Gradient of :func:`group_sort_network`: the network run in reverse over the gradient.

    Args:
        grad: gradient with respect to the sorted tensor.
        code: the code that the forward pass returned.
        group_size: a key of `NETWORKS`.
        dim: dimension whose neighbours form groups.

    Returns:
        The shape of `grad`.
    """
    grouped = _grouped(grad, group_size, dim)
    _, groups, _, inner = grouped.shape
    swaps = _unpack(code, groups * inner).unflatten(-1, (groups, inner))
    lanes = list(grouped.unbind(2))
    for (i, j), swap in zip(reversed(NETWORKS[group_size]), reversed(swaps.unbind(0)), strict=True):
        lanes[i], lanes[j] = (
            torch.where(swap, lanes[j], lanes[i]),
            torch.where(swap, lanes[i], lanes[j]),
        )
    return torch.stack(lanes, 2).reshape(grad.shape)
