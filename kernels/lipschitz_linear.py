"""The Lipschitz layer y = GroupSort_g(P_r(W) x + b), equation (1), and its gradient.

Forward is two launches: the rows' thresholds, and a matrix product that soft-thresholds each tile
of the weight as it arrives and, on the finished tile, adds the bias, sorts the groups and packs
the comparators' outcomes. Neither the projected weight nor the unsorted product reaches memory.

Backward is four launches, three without a sort: the sort undone, the gradients with respect to x
(again projecting tiles of the weight as they arrive) and to P_r(W) (with the bias's in the same
launch), and equation (3) in place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels import _tuning
from lipvae.kernels._common import (
    OPTIONS,
    check_companion,
    check_operand,
    check_radius,
    dot,
    on_device,
)
from lipvae.kernels._tuning import Tile
from lipvae.kernels.group_sort import (
    NETWORKS,
    code_shape,
    group_sort_backward,
    join_groups,
    sort_lanes,
    split_groups,
)
from lipvae.kernels.l1_ball import (
    l1_ball_threshold,
    project_gradient,
    soft_threshold,
    split_threshold,
)

# Tiles that compile without spilling for every kernel below; `python -m lipvae.kernels.aot` checks.
_TILES = {
    "half": (
        Tile(128, 128, 64, 8, 3),
        Tile(64, 128, 64, 4, 3),
        Tile(64, 64, 64, 4, 4),
        Tile(32, 64, 64, 4, 4),
        Tile(16, 64, 128, 4, 3),
    ),
    "tf32": (
        Tile(128, 128, 32, 8, 3),
        Tile(64, 64, 32, 4, 4),
        Tile(32, 64, 32, 4, 4),
        Tile(16, 64, 64, 4, 3),
    ),
    "ieee": (
        Tile(128, 64, 16, 8, 3),
        Tile(64, 64, 16, 8, 3),
        Tile(32, 64, 16, 4, 3),
        Tile(16, 64, 16, 4, 3),
    ),
}
_LARGE = Tile(256, 128, 64, 8, 3)  # fits the registers on Hopper only, and only unswapped


def tiles(product: str, kind: str, family: str, group: int = 1) -> list[Tile]:
    """The tiles of a product ("forward", "grad_x" or "grad_weight") on a family of GPUs.

    Which order of the operands spills depends on both; Hopper runs either, and prefers the
    projected weight first.
    """
    if product == "grad_weight":  # nothing is projected, so nothing is gained
        orders = [False]
    elif kind == "ieee":
        orders = [True]
    elif family == "hopper":
        orders = [True, False]
    else:
        orders = [family == "cdna" and product == "grad_x"]
    stages = 2 if family == "cdna" else None
    found = [
        replace(tile, swapped=swapped, num_stages=stages or tile.num_stages)
        for tile in _TILES[kind]
        for swapped in orders
    ]
    if kind == "half" and family == "hopper":
        found.append(_LARGE)
    # The packed outcomes of a tile fill whole bytes.
    return [tile for tile in found if tile.cols % (8 * group) == 0]


@triton.jit
def tile_index(rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Row and column of this program's tile: eight tile rows at a time, for the cache's sake."""
    across = tl.cdiv(cols, COLS)
    band = tl.program_id(0) // (8 * across)
    height = tl.minimum(tl.cdiv(rows, ROWS) - 8 * band, 8)
    within = tl.program_id(0) % (8 * across)
    return 8 * band + within % height, within // height


@triton.jit
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
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    SWAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile of y [rows, cols] from x [rows, inner] and W [cols, inner]."""
    row_tile, col_tile = tile_index(rows, cols, ROWS, COLS)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    k = tl.arange(0, INNER)
    # Rows beyond the edge repeat rows inside it; their results are dropped.
    x_tile = x_ptr + (row % rows).to(tl.int64)[:, None] * inner + k[None, :]
    w_tile = weight_ptr + (col % cols).to(tl.int64)[:, None] * inner + k[None, :]
    hi, lo = split_threshold(tl.load(threshold_ptr + col % cols))

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


@triton.jit
def linear_grad_x(
    grad_ptr,
    weight_ptr,
    threshold_ptr,
    grad_x_ptr,
    rows,
    cols,
    inner,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    SWAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile of dx [rows, cols] from dz [rows, inner] and W [inner, cols]."""
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
            tau = tl.load(threshold_ptr + start + k)
        else:
            inside = start + k < inner
            grad = tl.load(g_tile + start, mask=inside[None, :], other=0.0)
            w = tl.load(w_tile, mask=inside[:, None], other=0.0)
            tau = tl.load(threshold_ptr + start + k, mask=inside, other=0.0)
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


@triton.jit
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
    SWAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile of dP [rows, cols] from dz [inner, rows] and x [inner, cols], in float32.

    The programs of the first column of tiles also sum dz over the batch, the bias's gradient.
    """
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


def _launch(
    product: str,
    arguments: tuple[Any, ...],
    shape: tuple[int, int, int],
    group: int = 1,
    **fixed: Any,
) -> None:
    """Runs a product kernel on the tile that the shape [rows, cols, inner] gets."""
    like = arguments[0]
    rows, cols, inner = shape
    kind = _tuning.product_kind(like.dtype)
    device = _tuning.machine(like.device.index if like.is_cuda else None)
    ranked = _tuning.ranked(tiles(product, kind, device.family, group), shape, kind, device)

    def launch(tile: Tile) -> None:
        grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(cols, tile.cols),)
        KERNELS[product][grid](
            *arguments,
            rows,
            cols,
            inner,
            PRECISION="tf32" if kind == "tf32" else "ieee",
            EVEN=inner % tile.inner == 0,
            **fixed,
            **tile.keywords(),
            **OPTIONS,
        )

    with on_device(like):
        bucket = (triton.next_power_of_2(rows), triton.next_power_of_2(cols), inner)
        key = (product, like.dtype, like.device, kind, group, bucket)
        launch(_tuning.pick(key, ranked, launch))


def _check_group(group_size: int | None, features: int) -> int:
    """The group size, 1 for no sort; raises unless a kernel covers it."""
    if group_size is None or group_size == 1:
        return 1
    if group_size not in NETWORKS:
        raise ValueError(
            f"group_size must be None, 1 or one of {sorted(NETWORKS)}, got {group_size!r}"
        )
    if features % group_size:
        raise ValueError(
            f"group_size must divide the number of outputs, got {group_size} for {features}"
        )
    return group_size


def _check_layer(x: object, weight: object) -> tuple[Tensor, Tensor]:
    weight = check_operand("weight", weight, dim=2)
    x = check_operand("x", x, dim=2)
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    return check_companion("x", x, weight, (x.shape[0], weight.shape[1]), weight.dtype), weight


def lipschitz_linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    radius: float = 1.0,
    group_size: int | None = None,
    record: bool = True,
    warm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y = GroupSort_g(P_r(W) x + b), equation (1), in two launches.

    Args:
        x: [rows, in], float32, float16 or bfloat16.
        weight: [out, in], the dtype of x.
        bias: [out] in the dtype of x, or None.
        radius: radius r > 0.
        group_size: 2, 4 or 8, a divisor of out; None or 1 for no sort.
        record: whether to record the comparators for the backward pass.
        warm: float64 [out], thresholds to start from.

    Returns:
        y [rows, out] in the dtype of x, accumulated in float32; the thresholds, float64 [out]; the
        code as :func:`lipvae.kernels.group_sort.group_sort_forward` gives it, or None.
    """
    x, weight = _check_layer(x, weight)
    radius = check_radius(radius)
    (rows, inner), cols = x.shape, weight.shape[0]
    group = _check_group(group_size, cols)
    if bias is not None:
        bias = check_companion("bias", bias, x, (cols,), x.dtype)
    threshold = l1_ball_threshold(weight, radius, warm)
    y = x.new_empty(rows, cols)
    code = None
    if group > 1 and record:
        code = x.new_empty(code_shape(rows, cols, 1, group), dtype=torch.uint8)
    if rows:
        _launch(
            "forward",
            (x, weight, x if bias is None else bias, threshold, y, x if code is None else code),
            (rows, cols, inner),
            group,
            GROUP=group,
            NETWORK=NETWORKS.get(group, ()),
            BIAS=bias is not None,
            RECORD=code is not None,
        )
    return y, threshold, code


def lipschitz_linear_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    code: Tensor | None,
    group_size: int | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`lipschitz_linear_forward`.

    Args:
        grad_y: [rows, out], the dtype of x.
        x: [rows, in] of the forward pass.
        weight: [out, in] of the forward pass.
        threshold: float64 [out] from the forward pass.
        code: the forward pass's code; None without a sort.
        group_size: as in the forward pass.
        needs: which of the three gradients to compute.

    Returns:
        Gradients with respect to x, the weight (through the projection, equation (3)) and the
        bias, in the dtype of x; None where not needed.
    """
    x, weight = _check_layer(x, weight)
    (rows, inner), cols = x.shape, weight.shape[0]
    grad = check_companion("grad_y", grad_y, x, (rows, cols), x.dtype)
    threshold = check_companion("threshold", threshold, x, (cols,), torch.float64)
    group = _check_group(group_size, cols)
    if group > 1 and any(needs):
        if code is None:
            raise ValueError("code must be the forward pass's code where there is a sort, got None")
        grad = group_sort_backward(grad, code, group)
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        grad_x = torch.empty_like(x)
        if rows:
            _launch("grad_x", (grad, weight, threshold, grad_x), (rows, inner, cols))
    if needs[1]:
        grad_projected = x.new_zeros(cols, inner, dtype=torch.float32)
        sums = x.new_zeros(cols, dtype=torch.float32)
        if rows:
            _launch(
                "grad_weight",
                (grad, x, grad_projected, sums),
                (cols, inner, rows),
                BIAS=needs[2],
            )
        grad_weight = project_gradient(grad_projected, weight, threshold)
        grad_bias = sums.to(x.dtype) if needs[2] else None
    elif needs[2]:
        grad_bias = grad.sum(0, dtype=torch.float32).to(x.dtype)
    return grad_x, grad_weight, grad_bias
