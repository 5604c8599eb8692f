"""The three matrix products of the Lipschitz layer, and the tiles that they run on."""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl

from lipvae.kernels._common import dot, multiple
from lipvae.kernels._newton import soft_threshold, split_threshold
from lipvae.kernels._tuning import FROM_SHARED, Tile
from lipvae.kernels.group_sort import join_groups, sort_lanes, split_groups

# Tiles that compile without spilling for every kernel below; `python -m lipvae.kernels.aot` checks.
_TILES = {
    "half": (
        Tile(128, 128, 64, 8, 3),
        Tile(64, 128, 64, 4, 3),
        Tile(64, 64, 64, 4, 4),
        Tile(32, 64, 64, 4, 4),
        Tile(16, 64, 64, 4, 4),
    ),
    "tf32": (
        Tile(128, 128, 32, 8, 3),
        Tile(64, 64, 32, 4, 4),
        Tile(32, 64, 32, 4, 4),
        Tile(16, 64, 32, 4, 4),
    ),
    "ieee": (
        Tile(128, 64, 16, 8, 4),
        Tile(64, 64, 16, 8, 3),
        Tile(32, 64, 16, 4, 3),
        Tile(16, 64, 16, 4, 3),
    ),
}
# Fits the registers on Hopper only, only unswapped, and only where there is little to sort.
_LARGE = Tile(256, 128, 64, 8, 3)


def tiles(
    product: str, kind: str, family: str, group: int = 1, projecting: bool = False
) -> list[Tile]:
    """The tiles of a product ("forward", "grad_x" or "grad_weight") on a family of GPUs.

    Which order of the operands spills depends on all of them. Where the product projects, Hopper
    runs either, and prefers the projected weight first.
    """
    if product != "grad_weight" and kind == "ieee":
        orders = [True]
    elif not projecting:
        orders = [False]
    elif family in FROM_SHARED:
        orders = [True, False]
    else:
        orders = [family == "cdna" and product == "grad_x"]
    found = [
        replace(tile, swapped=swapped, num_stages=_stages(tile, product, kind, family))
        for tile in _TILES[kind]
        for swapped in orders
    ]
    if kind == "half" and family == "hopper" and group <= 2:
        found.append(_LARGE)
    if product == "grad_weight":  # whose rows are outputs: never as few as one image's are
        found = [tile for tile in found if tile.rows >= 32]
    # The packed outcomes of a tile fill whole bytes.
    return [tile for tile in found if tile.cols % (8 * group) == 0]


def _stages(tile: Tile, product: str, kind: str, family: str) -> int:
    if family == "cdna":
        return 2
    if (product, kind, tile.rows) == ("grad_x", "ieee", 32):  # a third spills on Hopper
        return 2
    return tile.num_stages


@triton.jit
def tile_index(rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Row and column of this program's tile: eight tile rows at a time, for the cache's sake."""
    across = tl.cdiv(cols, COLS)
    band = tl.program_id(0) // (8 * across)
    height = tl.minimum(tl.cdiv(rows, ROWS) - 8 * band, 8)
    within = tl.program_id(0) % (8 * across)
    return 8 * band + within % height, within // height


@triton.jit(do_not_specialize=["rows", "cols", "inner"])
def linear_forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    threshold_ptr,
    y_ptr,
    code_ptr,
    rows,
    cols,
    inner,
    GROUP: tl.constexpr,
    NETWORK: tl.constexpr,
    BIAS: tl.constexpr,
    RECORD: tl.constexpr,
    PROJECT: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGN_COLS: tl.constexpr,
    ALIGN_INNER: tl.constexpr,
    SWAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile of y [rows, cols] from x [rows, inner] and W [cols, inner], projected if PROJECT."""
    cols = multiple(cols, ALIGN_COLS)
    inner = multiple(inner, ALIGN_INNER)
    row_tile, col_tile = tile_index(rows, cols, ROWS, COLS)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    k = tl.arange(0, INNER)
    # Rows beyond the edge repeat the last inside it; their results are dropped.
    unit = tl.minimum(col, cols - 1)
    x_tile = x_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * inner + k[None, :]
    w_tile = weight_ptr + unit.to(tl.int64)[:, None] * inner + k[None, :]
    if PROJECT:
        hi, lo = split_threshold(tl.load(threshold_ptr + unit))

    if SWAPPED:
        acc = tl.zeros([COLS, ROWS], tl.float32)
    else:
        acc = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, inner, INNER):
        if EVEN:
            x = tl.load(x_tile + start)
            w = tl.load(w_tile + start)
        else:
            x = tl.load(x_tile + start, mask=(start + k < inner)[None, :], other=0.0)
            w = tl.load(w_tile + start, mask=(start + k < inner)[None, :], other=0.0)
        if PROJECT:
            w = soft_threshold(w.to(tl.float32), hi[:, None], lo[:, None]).to(x.dtype)
        if SWAPPED:
            acc = dot(w, tl.trans(x), acc, PRECISION)
        else:
            acc = dot(x, tl.trans(w), acc, PRECISION)
    if SWAPPED:
        acc = tl.trans(acc)

    if BIAS:
        acc += tl.load(bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)[None, :]
    if GROUP > 1:
        bytes_a_row = tl.cdiv(cols // GROUP, 8)
        byte = col_tile * (COLS // GROUP // 8) + tl.arange(0, COLS // GROUP // 8)
        acc = tl.where((col < cols)[None, :], acc, 0.0)  # no swaps, so zero bits, in the padding
        lanes = sort_lanes(
            split_groups(acc, GROUP),
            code_ptr,
            tl.cast(rows, tl.int64) * bytes_a_row,
            row.to(tl.int64)[:, None] * bytes_a_row + byte[None, :],
            (row < rows)[:, None] & (byte < bytes_a_row)[None, :],
            NETWORK,
            RECORD,
        )
        acc = join_groups(lanes, GROUP)
    at = row.to(tl.int64)[:, None] * cols + col[None, :]
    tl.store(y_ptr + at, acc, mask=(row < rows)[:, None] & (col < cols)[None, :])


@triton.jit(do_not_specialize=["rows", "cols", "inner"])
def linear_grad_x(
    grad_ptr,
    weight_ptr,
    threshold_ptr,
    grad_x_ptr,
    rows,
    cols,
    inner,
    PROJECT: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGN_COLS: tl.constexpr,
    ALIGN_INNER: tl.constexpr,
    SWAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile of dx [rows, cols] from dz [rows, inner] and W [inner, cols], as above."""
    cols = multiple(cols, ALIGN_COLS)
    inner = multiple(inner, ALIGN_INNER)
    row_tile, col_tile = tile_index(rows, cols, ROWS, COLS)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    k = tl.arange(0, INNER)
    g_tile = grad_ptr + (row % rows).to(tl.int64)[:, None] * inner + k[None, :]
    w_tile = weight_ptr + k.to(tl.int64)[:, None] * cols + (col % cols)[None, :]

    if SWAPPED:
        acc = tl.zeros([COLS, ROWS], tl.float32)
    else:
        acc = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, inner, INNER):
        if EVEN:
            grad = tl.load(g_tile + start)
            w = tl.load(w_tile)
        else:
            inside = start + k < inner
            grad = tl.load(g_tile + start, mask=inside[None, :], other=0.0)
            w = tl.load(w_tile, mask=inside[:, None], other=0.0)
        if PROJECT:
            if EVEN:
                tau = tl.load(threshold_ptr + start + k)
            else:
                tau = tl.load(threshold_ptr + start + k, mask=start + k < inner, other=0.0)
            hi, lo = split_threshold(tau)
            w = soft_threshold(w.to(tl.float32), hi[:, None], lo[:, None]).to(grad.dtype)
        w_tile += INNER * tl.cast(cols, tl.int64)
        if SWAPPED:
            acc = dot(tl.trans(w), tl.trans(grad), acc, PRECISION)
        else:
            acc = dot(grad, w, acc, PRECISION)
    if SWAPPED:
        acc = tl.trans(acc)
    at = row.to(tl.int64)[:, None] * cols + col[None, :]
    tl.store(grad_x_ptr + at, acc, mask=(row < rows)[:, None] & (col < cols)[None, :])


@triton.jit(do_not_specialize=["rows", "cols", "inner"])
def linear_grad_weight(
    grad_ptr,
    x_ptr,
    grad_projected_ptr,
    grad_bias_ptr,
    rows,
    cols,
    inner,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGN_ROWS: tl.constexpr,
    ALIGN_COLS: tl.constexpr,
    SWAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile of dP [rows, cols] from dz [inner, rows] and x [inner, cols], in float32.

    The programs of the first column of tiles also sum dz over the batch, the bias's gradient.
    """
    rows = multiple(rows, ALIGN_ROWS)
    cols = multiple(cols, ALIGN_COLS)
    row_tile, col_tile = tile_index(rows, cols, ROWS, COLS)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    k = tl.arange(0, INNER)
    g_tile = grad_ptr + k.to(tl.int64)[:, None] * rows + (row % rows)[None, :]
    x_tile = x_ptr + k.to(tl.int64)[:, None] * cols + (col % cols)[None, :]

    acc = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, inner, INNER):
        if EVEN:
            grad = tl.load(g_tile)
            x = tl.load(x_tile)
        else:
            grad = tl.load(g_tile, mask=(start + k < inner)[:, None], other=0.0)
            x = tl.load(x_tile, mask=(start + k < inner)[:, None], other=0.0)
        g_tile += INNER * tl.cast(rows, tl.int64)
        x_tile += INNER * tl.cast(cols, tl.int64)
        acc = dot(tl.trans(grad), x, acc, PRECISION)
    at = row.to(tl.int64)[:, None] * cols + col[None, :]
    tl.store(grad_projected_ptr + at, acc, mask=(row < rows)[:, None] & (col < cols)[None, :])

    if BIAS:
        if col_tile == 0:
            lanes = tl.zeros([INNER, ROWS], tl.float32)
            g_tile = grad_ptr + k.to(tl.int64)[:, None] * rows + (row % rows)[None, :]
            for start in range(0, inner, INNER):
                grad = tl.load(g_tile, mask=(start + k < inner)[:, None], other=0.0)
                lanes += grad.to(tl.float32)
                g_tile += INNER * tl.cast(rows, tl.int64)
            tl.store(grad_bias_ptr + row, tl.sum(lanes, 0), mask=row < rows)


KERNELS = {"forward": linear_forward, "grad_x": linear_grad_x, "grad_weight": linear_grad_weight}
