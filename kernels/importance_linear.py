"""The decoder's last layer fused with the log-likelihood: the parameters never reach memory.

A program computes a tile of parameters as a matrix product and, instead of storing it, sums the
log densities of its pixels into one number a row. A second launch adds the numbers of the tiles:
no atomics, so the result is the same in every run. The tile depends on the family and the dtype
alone, so a row's bits depend neither on K nor on B. Operands whose rows are not multiples of 8
bytes are copied with zeros at the ends of their rows, in launches of torch's.

The fusion is for scoring and has no backward pass: for a gradient, compose a linear layer with
:mod:`lipvae.kernels.importance`.
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
    alignment,
    cdiv,
    check_companion,
    check_operand,
    dot,
    multiple,
    on_device,
    padded,
    padded_length,
)
from lipvae.kernels._densities import check_family, log_density
from lipvae.kernels._tuning import Machine, Tile
from lipvae.kernels.importance import grey_level

# Per kind of product and count of parameters a pixel: rows x pixels, where a second parameter is a
# second product, or rows x 256 levels of one pixel after another.
TILES = {
    ("half", 1): Tile(128, 128, 64, 8, 3),
    ("half", 2): Tile(128, 64, 64, 8, 3),
    ("half", 256): Tile(64, 256, 64, 8, 3),
    ("tf32", 1): Tile(128, 128, 32, 8, 3),
    ("tf32", 2): Tile(128, 64, 32, 8, 3),
    ("tf32", 256): Tile(64, 256, 32, 8, 3),
    ("ieee", 1): Tile(64, 64, 16, 8, 3),
    ("ieee", 2): Tile(64, 32, 16, 8, 3),
    ("ieee", 256): Tile(32, 256, 16, 8, 3),
}
# Pixels of one program of the categorical kernel: that many fewer numbers to write.
CATEGORICAL_PIXELS = 16
SUMMED_ROWS = 128


@triton.jit
def _product(
    h_ptr, w_ptr, acc, k, inner, PRECISION: tl.constexpr, EVEN: tl.constexpr, INNER: tl.constexpr
):
    """acc + h w^T over the inner dimension, for tiles of pointers to its first block."""
    for start in range(0, inner, INNER):
        if EVEN:
            h = tl.load(h_ptr + start)
            w = tl.load(w_ptr + start)
        else:
            h = tl.load(h_ptr + start, mask=(start + k < inner)[None, :], other=0.0)
            w = tl.load(w_ptr + start, mask=(start + k < inner)[None, :], other=0.0)
        acc = dot(h, tl.trans(w), acc, PRECISION)
    return acc


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLS: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(tile, [ROWS, 2, COLS // 2]), (0, 2, 1)))


@triton.jit
def _parts(tile, ROWS: tl.constexpr, COLS: tl.constexpr, PARTS: tl.constexpr):
    """The columns of a tile in one part or in four, one after the other."""
    if PARTS == 1:
        parts = (tile,)
    else:
        left, right = _halves(tile, ROWS, COLS)
        a, b = _halves(left, ROWS, COLS // 2)
        c, d = _halves(right, ROWS, COLS // 2)
        parts = (a, b, c, d)
    return parts


@triton.jit(do_not_specialize=["rows", "batch", "pixels", "inner"])
def linear_log_likelihood(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    partial_ptr,
    rows,
    batch,
    pixels,
    inner,
    FAMILY: tl.constexpr,
    COUNT: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGN_PIXELS: tl.constexpr,
    ALIGN_INNER: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """partial [pixel tiles, rows]: log density summed over the tile's pixels, part by part."""
    pixels = multiple(pixels, ALIGN_PIXELS)
    inner = multiple(inner, ALIGN_INNER)
    row_tiles = tl.cdiv(rows, ROWS)
    row = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    pixel_tile = tl.program_id(0) // row_tiles
    pixel = pixel_tile * COLS + tl.arange(0, COLS)
    k = tl.arange(0, INNER)
    # Rows and pixels beyond the edge repeat the last inside it; their results are dropped.
    h = hidden_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * inner + k[None, :]
    unit = tl.minimum(pixel, pixels - 1)
    w = weight_ptr + unit.to(tl.int64)[:, None] * inner + k[None, :]
    acc = tl.zeros([ROWS, COLS], tl.float32)
    first = _product(h, w, acc, k, inner, PRECISION, EVEN, INNER)
    if BIAS:
        first += tl.load(bias_ptr + unit).to(tl.float32)[None, :]
    second = first
    if COUNT == 2:
        w += tl.cast(pixels, tl.int64) * inner
        second = _product(h, w, acc, k, inner, PRECISION, EVEN, INNER)
        if BIAS:
            second += tl.load(bias_ptr + pixels + unit).to(tl.float32)[None, :]
    image = target_ptr + (row % batch).to(tl.int64)[:, None] * pixels
    PART: tl.constexpr = COLS // PARTS
    firsts = _parts(first, ROWS, COLS, PARTS)
    seconds = firsts
    if COUNT == 2:
        seconds = _parts(second, ROWS, COLS, PARTS)
    total = tl.zeros([ROWS], tl.float32)
    for part in tl.static_range(PARTS):
        column = pixel_tile * COLS + part * PART + tl.arange(0, PART)
        inside = (column < pixels)[None, :]
        x = tl.load(image + column[None, :], mask=inside, other=0.0).to(tl.float32)
        term = tl.where(inside, log_density(x, firsts[part], seconds[part], FAMILY), 0.0)
        total += tl.sum(term, 1)
    out = partial_ptr + tl.cast(pixel_tile, tl.int64) * rows + row
    tl.store(out, total, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "batch", "pixels", "inner"])
def linear_log_likelihood_categorical(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    partial_ptr,
    rows,
    batch,
    pixels,
    inner,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGN_INNER: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """partial [pixel groups, rows]: log softmax at the grey level, pixel after pixel."""
    inner = multiple(inner, ALIGN_INNER)
    row_tiles = tl.cdiv(rows, ROWS)
    row = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(0) // row_tiles
    level = tl.arange(0, COLS)
    k = tl.arange(0, INNER)
    h = hidden_ptr + (row % rows).to(tl.int64)[:, None] * inner + k[None, :]
    image = target_ptr + (row % batch).to(tl.int64) * pixels
    total = tl.zeros([ROWS], tl.float32)
    for pixel in range(group * PIXELS, tl.minimum(group * PIXELS + PIXELS, pixels)):
        unit = level.to(tl.int64) * pixels + pixel
        acc = tl.zeros([ROWS, COLS], tl.float32)
        w = weight_ptr + unit[:, None] * inner + k[None, :]
        logit = _product(h, w, acc, k, inner, PRECISION, EVEN, INNER)
        if BIAS:
            logit += tl.load(bias_ptr + unit).to(tl.float32)[None, :]
        logit -= tl.max(logit, 1)[:, None]
        hot = level[None, :] == grey_level(tl.load(image + pixel))[:, None]
        chosen = tl.sum(tl.where(hot, logit, 0.0), 1)
        total += chosen - tl.log(tl.sum(tl.exp(logit), 1))
    out = partial_ptr + tl.cast(group, tl.int64) * rows + row
    tl.store(out, total, mask=row < rows)


@triton.jit
def sum_tiles(partial_ptr, out_ptr, rows, tiles, ROWS: tl.constexpr):
    """out [rows] from partial [tiles, rows], one tile after another whatever the count of rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    acc = tl.zeros([ROWS], tl.float32)
    for tile in range(0, tiles):
        at = tl.cast(tile, tl.int64) * rows + row
        acc += tl.load(partial_ptr + at, mask=row < rows, other=0.0)
    tl.store(out_ptr + row, acc, mask=row < rows)


def tile_for(kind: str, count: int, device: Machine) -> Tile:
    """The tile of a kind of product on a GPU, with as many stages as its shared memory holds."""
    tile = TILES[kind, count]
    if device.family == "cdna":
        tile = replace(tile, num_stages=2)
    spare = 0 if device.family in _tuning.FROM_SHARED else 1  # a stage that lies in registers
    itemsize = 2 if kind == "half" else 4
    while tile.num_stages > 1:
        buffers = replace(tile, num_stages=tile.num_stages - spare)
        if buffers.shared_bytes(itemsize) <= device.shared_limit:
            break
        tile = replace(tile, num_stages=tile.num_stages - 1)
    return tile


def parts_for(kind: str, count: int, device: Machine) -> int:
    """In how many parts the densities of a tile are computed.

    In four they take so few registers that two programs fit a multiprocessor of Hopper's, and one
    multiplies while the other computes densities. On Ampere the operands of a matrix product lie in
    registers too: with two products two programs do not fit either way. Of float32 without TF32
    four parts spill for a family.
    """
    if kind == "ieee":
        return 1
    return 1 if count == 2 and device.family in ("ampere", "turing") else 4


def importance_linear_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str = "bernoulli"
) -> Tensor:
    """log p(x | z_k) from the decoder's last hidden layer, equation (5), in two launches.

    Equal to the linear layer followed by the log-likelihood, up to the rounding of half parameters,
    which here stay in float32. Forward only.

    Args:
        hidden: [K, B, H], float32, float16 or bfloat16.
        weight: [P * D, H] in the dtype of `hidden`.
        bias: [P * D] in the dtype of `hidden`, or None.
        target: [B, D] in [0, 1], any of the dtypes.
        family: as for :func:`lipvae.kernels.importance.importance_forward`.

    Returns:
        float32 [K, B].
    """
    count = check_family(family)
    hidden = check_operand("hidden", hidden, dim=3)
    target = check_operand("target", target, dim=2)
    (k, b, inner), d = hidden.shape, target.shape[1]
    target = check_companion("target", target, hidden, (b, d))
    weight = check_companion("weight", weight, hidden, (count * d, inner), hidden.dtype)
    if bias is not None:
        bias = check_companion("bias", bias, hidden, (count * d,), hidden.dtype)
    if d == 0 or inner == 0:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    rows = k * b
    if rows == 0:
        return hidden.new_zeros(k, b, dtype=torch.float32)
    inner = padded_length(inner, hidden.dtype)
    hidden, weight = padded(hidden, k, b, inner), padded(weight, count * d, inner)

    device = _tuning.machine(hidden.device.index if hidden.is_cuda else None)
    kind = _tuning.product_kind(hidden.dtype, device.family)
    tile = tile_for(kind, count, device)
    arguments: dict[str, Any] = {"BIAS": bias is not None, **tile.keywords()}
    del arguments["SWAPPED"]
    if count == 256:
        kernel, pixels = linear_log_likelihood_categorical, CATEGORICAL_PIXELS
        arguments["PIXELS"] = pixels
    else:
        kernel, pixels = linear_log_likelihood, tile.cols
        arguments |= {"FAMILY": family, "COUNT": count, "PARTS": parts_for(kind, count, device)}
        arguments["ALIGN_PIXELS"] = alignment(d, target.dtype)
    partial = hidden.new_empty(cdiv(d, pixels), rows, dtype=torch.float32)
    with on_device(hidden):
        kernel[(cdiv(rows, tile.rows) * partial.shape[0],)](
            hidden,
            weight,
            hidden if bias is None else bias,
            target,
            partial,
            rows,
            b,
            d,
            inner,
            PRECISION="tf32" if kind == "tf32" else "ieee",
            EVEN=inner % tile.inner == 0,
            ALIGN_INNER=alignment(inner, hidden.dtype),
            **arguments,
            **OPTIONS,
        )
        out = hidden.new_empty(k, b, dtype=torch.float32)
        sum_tiles[(cdiv(rows, SUMMED_ROWS),)](
            partial, out, rows, partial.shape[0], ROWS=SUMMED_ROWS, num_warps=4, **OPTIONS
        )
    return out
