"""GroupSort and its gradient by sorting networks: one launch each way, equation (1).

A program holds `ROWS` x `PAIRS` groups as one register tile per lane of the group, so that a
comparator is a comparison and two selects with no exchange between threads. The forward pass keeps
one bit per comparator and group; the backward pass reads the bits and runs the network in
reverse. The bits make a permutation, so elements that tie get one gradient each.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import (
    OPTIONS,
    cdiv,
    check_companion,
    check_operand,
    next_power_of_2,
    on_device,
)

# A comparator (i, j) swaps iff x_i > x_j. The order fixes the meaning of the recorded bits.
NETWORKS: dict[int, tuple[tuple[int, int], ...]] = {
    2: ((0, 1),),
    4: ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)),
    8: (
        (0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6),
        (0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6),
    ),
}  # fmt: skip

_INT32 = 2**31


@triton.jit
def _halves(tile):
    """[a, b] -> entries of even and of odd index along the last dimension, [a, b / 2] each."""
    return tl.split(tl.reshape(tile, (tile.shape[0], tile.shape[1] // 2, 2)))


@triton.jit
def _interleave(even, odd):
    return tl.reshape(tl.join(even, odd), (even.shape[0], even.shape[1] * 2))


@triton.jit
def _split4(tile):
    even, odd = _halves(tile)
    a, c = _halves(even)
    b, d = _halves(odd)
    return a, b, c, d


@triton.jit
def _join4(a, b, c, d):
    return _interleave(_interleave(a, c), _interleave(b, d))


# No function calls itself: Triton before 3.5 follows both branches of `GROUP`.
@triton.jit
def split_groups(tile, GROUP: tl.constexpr):
    """[rows, groups * GROUP] -> GROUP lanes [rows, groups], in order."""
    if GROUP == 2:
        lanes = _halves(tile)
    elif GROUP == 4:
        lanes = _split4(tile)
    else:
        even, odd = _halves(tile)
        a, c, e, g = _split4(even)
        b, d, f, h = _split4(odd)
        lanes = (a, b, c, d, e, f, g, h)
    return lanes


@triton.jit
def join_groups(lanes, GROUP: tl.constexpr):
    """The inverse of :func:`split_groups`."""
    if GROUP == 2:
        tile = _interleave(lanes[0], lanes[1])
    elif GROUP == 4:
        tile = _join4(lanes[0], lanes[1], lanes[2], lanes[3])
    else:
        even = _join4(lanes[0], lanes[2], lanes[4], lanes[6])
        tile = _interleave(even, _join4(lanes[1], lanes[3], lanes[5], lanes[7]))
    return tile


@triton.jit
def _exchange(lanes, swap, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Lanes LOW < HIGH exchanged where `swap` holds."""
    low = tl.where(swap, lanes[HIGH], lanes[LOW])
    high = tl.where(swap, lanes[LOW], lanes[HIGH])
    return lanes[:LOW] + (low,) + lanes[LOW + 1 : HIGH] + (high,) + lanes[HIGH + 1 :]


@triton.jit
def _packed(swap):
    """bool [rows, pairs] -> uint8 [rows, pairs / 8], the first pair in the lowest bit."""
    bits = tl.reshape(swap.to(tl.int32), (swap.shape[0], swap.shape[1] // 8, 8))
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def sort_lanes(lanes, code_ptr, plane, byte, inside, NETWORK: tl.constexpr, RECORD: tl.constexpr):
    """Runs the network; stores the packed outcomes of comparator c at code_ptr + c plane + byte."""
    for step in tl.static_range(len(NETWORK)):
        swap = lanes[NETWORK[step][0]] > lanes[NETWORK[step][1]]
        lanes = _exchange(lanes, swap, NETWORK[step][0], NETWORK[step][1])
        if RECORD:
            tl.store(code_ptr + step * plane + byte, _packed(swap), mask=inside)
    return lanes


@triton.jit
def _groups_offset(pair, inner, GROUP: tl.constexpr):
    """Offset of lane 0 of each pair (group, inner index) within a row."""
    return (pair // inner) * (GROUP * inner) + pair % inner


@triton.jit
def _load_lanes(row, pair, lane, rows_inside, n, inner, pairs, GROUP, CONTIGUOUS: tl.constexpr):
    """The lanes of a tile of groups, float32 [rows, pairs]; 0 outside."""
    if CONTIGUOUS:
        inside = rows_inside[:, None] & (lane < n)[None, :]
        tile = tl.load(row[:, None] + lane[None, :], mask=inside, other=0.0)
        lanes = split_groups(tile.to(tl.float32), GROUP)
    else:
        inside = rows_inside[:, None] & (pair < pairs)[None, :]
        first = row[:, None] + _groups_offset(pair, inner, GROUP)[None, :]
        lanes = ()
        for e in tl.static_range(GROUP):
            x = tl.load(first + e * inner, mask=inside, other=0.0)
            lanes = lanes + (x.to(tl.float32),)
    return lanes


@triton.jit
def _store_lanes(
    row, lanes, pair, lane, rows_inside, n, inner, pairs, GROUP, CONTIGUOUS: tl.constexpr
):
    if CONTIGUOUS:
        inside = rows_inside[:, None] & (lane < n)[None, :]
        tl.store(row[:, None] + lane[None, :], join_groups(lanes, GROUP), mask=inside)
    else:
        inside = rows_inside[:, None] & (pair < pairs)[None, :]
        first = row[:, None] + _groups_offset(pair, inner, GROUP)[None, :]
        for e in tl.static_range(GROUP):
            tl.store(first + e * inner, lanes[e], mask=inside)


@triton.jit
def sort_groups(
    x_ptr,
    y_ptr,
    code_ptr,
    outer,
    n,
    inner,
    GROUP: tl.constexpr,
    NETWORK: tl.constexpr,
    RECORD: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """x viewed as [outer, n, inner]: sorts the groups along n, records the comparators."""
    pairs = n // GROUP * inner
    bytes_a_row = tl.cdiv(pairs, 8)
    tiles = tl.cdiv(pairs, PAIRS)
    index = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) % tiles * PAIRS
    rows_inside = index < outer
    pair = start + tl.arange(0, PAIRS)
    lane = start * GROUP + tl.arange(0, PAIRS * GROUP)
    byte = start // 8 + tl.arange(0, PAIRS // 8)
    offset = index * n * inner

    lanes = _load_lanes(x_ptr + offset, pair, lane, rows_inside, n, inner, pairs, GROUP, CONTIGUOUS)
    lanes = sort_lanes(
        lanes,
        code_ptr,
        tl.cast(outer, tl.int64) * bytes_a_row,
        (index * bytes_a_row)[:, None] + byte[None, :],
        rows_inside[:, None] & (byte < bytes_a_row)[None, :],
        NETWORK,
        RECORD,
    )
    _store_lanes(y_ptr + offset, lanes, pair, lane, rows_inside, n, inner, pairs, GROUP, CONTIGUOUS)


@triton.jit
def unsort_groups(
    grad_ptr,
    code_ptr,
    grad_x_ptr,
    outer,
    n,
    inner,
    GROUP: tl.constexpr,
    NETWORK: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """The recorded network in reverse over the gradient."""
    pairs = n // GROUP * inner
    bytes_a_row = tl.cdiv(pairs, 8)
    tiles = tl.cdiv(pairs, PAIRS)
    index = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) % tiles * PAIRS
    rows_inside = index < outer
    pair = start + tl.arange(0, PAIRS)
    lane = start * GROUP + tl.arange(0, PAIRS * GROUP)
    offset = index * n * inner
    plane = tl.cast(outer, tl.int64) * bytes_a_row
    inside = rows_inside[:, None] & (pair < pairs)[None, :]
    code = code_ptr + (index * bytes_a_row)[:, None] + (pair // 8)[None, :]

    lanes = _load_lanes(
        grad_ptr + offset, pair, lane, rows_inside, n, inner, pairs, GROUP, CONTIGUOUS
    )
    for step in tl.static_range(len(NETWORK) - 1, -1, -1):
        byte = tl.load(code + step * plane, mask=inside, other=0)
        swap = ((byte.to(tl.int32) >> (pair % 8)[None, :]) & 1) != 0
        lanes = _exchange(lanes, swap, NETWORK[step][0], NETWORK[step][1])
    _store_lanes(
        grad_x_ptr + offset, lanes, pair, lane, rows_inside, n, inner, pairs, GROUP, CONTIGUOUS
    )


def code_shape(outer: int, n: int, inner: int, group_size: int) -> tuple[int, int, int]:
    """Shape of the uint8 code: comparators, outer, bytes for groups x inner bits."""
    return len(NETWORKS[group_size]), outer, -(-(n // group_size * inner) // 8)


def tile_config(outer: int, pairs: int, group_size: int) -> dict[str, int]:
    """Tile of about 2048 elements: as many pairs of one row as it has, then rows."""
    budget = 2048 // group_size
    width = min(budget, max(8, next_power_of_2(pairs)))
    rows = min(budget // width, next_power_of_2(outer))
    return {"ROWS": rows, "PAIRS": width, "num_warps": 4}


def _layout(x: Tensor, group_size: int, dim: int) -> tuple[int, int, int]:
    """[outer, n, inner] of the sort; raises unless a kernel covers it."""
    if group_size not in NETWORKS:
        raise ValueError(f"group_size must be one of {sorted(NETWORKS)}, got {group_size!r}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must lie in [{-x.dim()}, {x.dim() - 1}], got {dim}")
    dim %= x.dim()
    outer, n, inner = x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel()
    if n % group_size:
        raise ValueError(
            f"group_size must divide the length of the sorted dimension, got {group_size} for {n}"
        )
    if n * inner >= _INT32:
        raise ValueError(f"x must have fewer than 2^31 elements from dim on, got {n * inner}")
    return outer, n, inner


def _arguments(
    outer: int, n: int, inner: int, group_size: int
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and keyword arguments of either kernel."""
    if inner == 1 and n // group_size % 8 == 0 and outer * n < _INT32:
        # Rows of whole bytes are one long row, whose loads need no division and no ragged ends.
        outer, n = 1, outer * n
    tile = tile_config(outer, n // group_size * inner, group_size)
    tiles = cdiv(n // group_size * inner, tile["PAIRS"])
    arguments = {
        "outer": outer,
        "n": n,
        "inner": inner,
        "GROUP": group_size,
        "NETWORK": NETWORKS[group_size],
        "CONTIGUOUS": inner == 1,
        **tile,
        **OPTIONS,
    }
    return (tiles * cdiv(outer, tile["ROWS"]),), arguments


def group_sort_forward(
    x: Tensor, group_size: int = 2, dim: int = -1, record: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Sorts ascending inside groups of neighbours along `dim`, equation (1).

    Args:
        x: any shape, float32, float16 or bfloat16; viewed as [outer, n, inner] around `dim`.
        group_size: g, 2, 4 or 8; a divisor of n.
        dim: dimension whose neighbours form groups.
        record: whether to record the comparators for the backward pass.

    Returns:
        The sorted tensor, contiguous, and the code uint8 [comparators, outer,
        ceil(n / g * inner / 8)]: bit ``p % 8`` of byte ``p // 8``, p = group * inner + inner
        index, says whether the comparator swapped. None if it is not recorded. NaN never swaps.
    """
    x = check_operand("x", x)
    outer, n, inner = _layout(x, group_size, dim)
    y = torch.empty_like(x)
    code = None
    if record:
        code = x.new_empty(code_shape(outer, n, inner, group_size), dtype=torch.uint8)
    if x.numel():
        grid, arguments = _arguments(outer, n, inner, group_size)
        with on_device(x):
            sort_groups[grid](x, y, x if code is None else code, RECORD=record, **arguments)
    return y, code


def group_sort_backward(grad: Tensor, code: Tensor, group_size: int = 2, dim: int = -1) -> Tensor:
    """Gradient of :func:`group_sort_forward`: the network in reverse over the gradient.

    Args:
        grad: the shape of the forward pass's x.
        code: the code that the forward pass recorded.
        group_size: g, 2, 4 or 8.
        dim: dimension whose neighbours form groups.

    Returns:
        The shape and dtype of `grad`, contiguous.
    """
    grad = check_operand("grad", grad)
    outer, n, inner = _layout(grad, group_size, dim)
    code = check_companion("code", code, grad, code_shape(outer, n, inner, group_size), torch.uint8)
    grad_x = torch.empty_like(grad)
    if grad.numel():
        grid, arguments = _arguments(outer, n, inner, group_size)
        with on_device(grad):
            unsort_groups[grid](grad, code, grad_x, **arguments)
    return grad_x
