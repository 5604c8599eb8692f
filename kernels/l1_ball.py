"""Projection of rows onto the L1 ball, equations (1) and (3): one launch each way, no sort.

A row's threshold comes from Newton's iteration (``_newton.py``), in registers for rows that fit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import (
    OPTIONS,
    alignment,
    check_companion,
    check_operand,
    check_radius,
    multiple,
    next_power_of_2,
    on_device,
    result,
)
from lipvae.kernels._newton import (
    depth_of,
    find_active,
    over,
    settle,
    soft_threshold,
    split_threshold,
    two_floats,
)

# A row up to the first length stays in registers for the steps in float32. A longer one is read
# again in every step, from the cache, in chunks of the second length.
RESIDENT_COLS = 16384
CHUNK_COLS = 2048
# From here on a row's length is looked at for more than multiples of 16.
WIDE_COLS = 200
# The active entries are counted in float32, where integers are exact up to here.
MAX_COLS = 2**24
# How much of what evenly spread magnitudes have beyond Newton's first step others have too.
BOX = tl.constexpr(0.8)


@triton.jit
def _shrink_row(row, out, hi, lo, cols, CHUNK: tl.constexpr):
    for start in range(0, cols, CHUNK):
        chunk = start + tl.arange(0, CHUNK)
        w = tl.load(row + chunk, mask=chunk < cols, other=0.0).to(tl.float32)
        tl.store(out + chunk, soft_threshold(w, hi, lo), mask=chunk < cols)


# Passes without thresholds to start from run the same code: the pass that a CUDA graph captures is
# one, after others that had them, and nothing can be compiled inside a capture.
@triton.jit(do_not_specialize=["is_warm"])
def project_rows(
    weight_ptr,
    warm_ptr,
    projected_ptr,
    threshold_ptr,
    radius: tl.float64,
    cols,
    is_warm,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    PROJECT: tl.constexpr,
    BY_THRESHOLD: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """One row a program: its threshold and, if asked for, its projection.

    BY_THRESHOLD projects by the threshold as it is stored, like all kernels that are given one.
    """
    index = tl.program_id(0)
    cols = multiple(cols, ALIGN)
    row = weight_ptr + index.to(tl.int64) * cols
    radius = tl.full((), radius, tl.float64)  # a plain float while interpreted

    norm_lanes = tl.zeros([CHUNK], tl.float64)
    peak_lanes = tl.zeros([CHUNK], tl.float32)
    for start in range(0, cols, CHUNK):
        chunk = start + tl.arange(0, CHUNK)
        w = tl.abs(tl.load(row + chunk, mask=chunk < cols, other=0.0).to(tl.float32))
        norm_lanes += w.to(tl.float64)
        peak_lanes = tl.maximum(peak_lanes, w)
    norm = tl.sum(norm_lanes, 0)
    peak = tl.max(peak_lanes, 0).to(tl.float64)
    outside = norm > radius

    # Newton's step from tau = 0, and beyond it most of what a row of evenly spread magnitudes has;
    # or tau = max|w| - r, whichever is nearer to the root.
    beyond = tl.sqrt(norm.to(tl.float32)) - tl.sqrt(radius.to(tl.float32))
    delta = peak - over(norm - radius + BOX * (beyond * beyond).to(tl.float64), cols)
    delta = tl.minimum(radius, delta)
    previous = peak - tl.load(warm_ptr + index, mask=is_warm != 0, other=0.0)
    delta = tl.where((previous > 0) & (previous < peak), previous, delta)
    if RESIDENT:
        column = tl.arange(0, BLOCK)
        w = tl.load(row + column, mask=column < cols, other=0.0).to(tl.float32)
        depth = depth_of(w, peak)
    else:
        depth = peak_lanes  # not read
    delta = find_active(row, depth, peak, delta, radius, outside, cols, CHUNK, not RESIDENT)
    delta = settle(row, peak, delta, radius, outside, cols, CHUNK)

    tau = peak - delta
    # Rounded up where the subtraction rounded down, so that the row sum does not exceed r.
    upper = tau + tl.where((peak - tau) > delta, tau * 2.220446049250313e-16, 0.0)
    upper = tl.where(outside, upper, 0.0)
    tl.store(threshold_ptr + index, upper)

    if PROJECT:
        if BY_THRESHOLD:
            hi, lo = split_threshold(upper)
        else:
            hi, lo = two_floats(peak, delta)
            hi = tl.where(outside, hi, 0.0)
            lo = tl.where(outside, lo, 0.0)
        # The row is read again, from the cache: its signs need not occupy registers until here.
        _shrink_row(row, projected_ptr + index.to(tl.int64) * cols, hi, lo, cols, CHUNK)


@triton.jit
def shrink_rows(
    weight_ptr, threshold_ptr, projected_ptr, cols, CHUNK: tl.constexpr, ALIGN: tl.constexpr
):
    """One row a program: its projection by a threshold found before."""
    index = tl.program_id(0)
    cols = multiple(cols, ALIGN)
    offset = index.to(tl.int64) * cols
    hi, lo = split_threshold(tl.load(threshold_ptr + index))
    _shrink_row(weight_ptr + offset, projected_ptr + offset, hi, lo, cols, CHUNK)


@triton.jit
def _signed_active(grad, w, hi, lo):
    """s g on A and 0 off it, and membership of A."""
    active = ((tl.abs(w) - hi) - lo) > 0
    return tl.where(active, tl.where(w < 0, -grad, grad), 0.0), active.to(tl.float32)


@triton.jit
def _centred(grad, w, hi, lo, mean):
    """g - s mean on A and 0 off it; g in a row inside the ball."""
    active = ((tl.abs(w) - hi) - lo) > 0
    centred = tl.where(active, grad - tl.where(w < 0, -mean, mean), 0.0)
    return tl.where(hi == 0, grad, centred)


@triton.jit
def project_rows_backward(
    grad_ptr,
    weight_ptr,
    threshold_ptr,
    grad_weight_ptr,
    cols,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """One row a program, equation (3)."""
    index = tl.program_id(0)
    cols = multiple(cols, ALIGN)
    offset = index.to(tl.int64) * cols
    hi, lo = split_threshold(tl.load(threshold_ptr + index))
    if RESIDENT:
        column = tl.arange(0, BLOCK)
        inside = column < cols
        grad = tl.load(grad_ptr + offset + column, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight_ptr + offset + column, mask=inside, other=0.0).to(tl.float32)
        signed, active = _signed_active(grad, w, hi, lo)
        total, count = tl.split(tl.sum(tl.join(signed, active), 0))
        mean = total / tl.maximum(count, 1.0)
        tl.store(grad_weight_ptr + offset + column, _centred(grad, w, hi, lo, mean), mask=inside)
    else:
        signed_lanes = tl.zeros([CHUNK], tl.float32)
        active_lanes = tl.zeros([CHUNK], tl.float32)
        for start in range(0, cols, CHUNK):
            column = start + tl.arange(0, CHUNK)
            at = offset + column
            grad = tl.load(grad_ptr + at, mask=column < cols, other=0.0).to(tl.float32)
            w = tl.load(weight_ptr + at, mask=column < cols, other=0.0).to(tl.float32)
            signed, active = _signed_active(grad, w, hi, lo)
            signed_lanes += signed
            active_lanes += active
        total, count = tl.split(tl.sum(tl.join(signed_lanes, active_lanes), 0))
        mean = total / tl.maximum(count, 1.0)
        for start in range(0, cols, CHUNK):
            column = start + tl.arange(0, CHUNK)
            at = offset + column
            grad = tl.load(grad_ptr + at, mask=column < cols, other=0.0).to(tl.float32)
            w = tl.load(weight_ptr + at, mask=column < cols, other=0.0).to(tl.float32)
            centred = _centred(grad, w, hi, lo, mean)
            tl.store(grad_weight_ptr + at, centred, mask=column < cols)


def row_config(cols: int) -> dict[str, int | bool]:
    """Register block, chunk and warps for rows of this length: 1024 columns a warp, up to 16.

    What a step does once, its reduction and its float64, is then spread over 32 columns a thread,
    and rows of up to 1024 wait for no other warp. A chunk is 8 columns a thread, and 16 of 16
    warps, where ptxas spills with 8.
    """
    width = max(32, next_power_of_2(cols))
    warps = min(16, max(1, width // 1024))
    resident = cols <= RESIDENT_COLS
    chunk = min(width, warps * (256 if warps < 16 else 512)) if resident else CHUNK_COLS
    return {
        "BLOCK": width if resident else CHUNK_COLS,
        "CHUNK": chunk,
        "RESIDENT": resident,
        "num_warps": warps,
    }


def row_alignment(cols: int) -> int:
    """By how many entries rows divide, up to 8, where Triton's dispatch sees no 16: else 1.

    Wide rows then have wide loads. A narrow one takes fewer instructions entry by entry.
    """
    return alignment(cols, torch.float16) if cols % 16 and cols >= WIDE_COLS else 1


def _run(
    weight: Tensor,
    radius: float,
    warm: Tensor | None,
    project: bool,
    by_threshold: bool = False,
) -> tuple[Tensor, Tensor]:
    weight = check_operand("weight", weight, dim=2)
    radius = check_radius(radius)
    rows, cols = weight.shape
    if cols >= MAX_COLS:
        raise ValueError(f"weight must have fewer than {MAX_COLS} columns, got {cols}")
    if warm is not None:
        warm = check_companion("warm", warm, weight, (rows,), torch.float64)
    threshold = result(weight, (rows,), torch.float64, written=weight.numel() > 0)
    projected = torch.empty_like(weight) if project else weight
    if weight.numel():
        with on_device(weight):
            project_rows[(rows,)](
                weight,
                threshold if warm is None else warm,
                projected,
                threshold,
                radius,
                cols,
                int(warm is not None),
                PROJECT=project,
                BY_THRESHOLD=by_threshold,
                ALIGN=row_alignment(cols),
                **row_config(cols),
                **OPTIONS,
            )
    return projected, threshold


def l1_ball_threshold(weight: Tensor, radius: float = 1.0, warm: Tensor | None = None) -> Tensor:
    """Threshold tau of each row, equation (1); 0 for a row inside the ball.

    Args:
        weight: [rows, cols], float32, float16 or bfloat16.
        radius: radius r > 0.
        warm: float64 [rows], thresholds to start from; they change the number of steps only.

    Returns:
        float64 [rows].
    """
    return _run(weight, radius, warm, project=False)[1]


def l1_ball_forward(
    weight: Tensor, radius: float = 1.0, warm: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Projection of each row and its threshold, equation (1), in one launch.

    Args:
        weight: [rows, cols], float32, float16 or bfloat16.
        radius: radius r > 0.
        warm: float64 [rows], thresholds to start from.

    Returns:
        [rows, cols] in the dtype of `weight`, and float64 [rows]. A float32 row sums, exactly
        added, to at most r (1 + 2^-23); a half row has each entry rounded to its dtype.
    """
    return _run(weight, radius, warm, project=True)


def l1_ball_by_threshold(
    weight: Tensor, radius: float = 1.0, warm: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`l1_ball_forward` with the bits that :func:`l1_ball_shrink` makes of the thresholds.

    They differ where the radius is below the last bit of the largest entry in float64.
    """
    return _run(weight, radius, warm, project=True, by_threshold=True)


def l1_ball_shrink(weight: Tensor, threshold: Tensor) -> Tensor:
    """sign(w) max(|w| - tau, 0) by thresholds found before, in one launch.

    Args:
        weight: [rows, cols], float32, float16 or bfloat16.
        threshold: float64 [rows].

    Returns:
        [rows, cols] in the dtype of `weight`.
    """
    weight = check_operand("weight", weight, dim=2)
    threshold = check_companion("threshold", threshold, weight, weight.shape[:1], torch.float64)
    rows, cols = weight.shape
    projected = torch.empty_like(weight)
    if weight.numel():
        config = row_config(cols)
        with on_device(weight):
            shrink_rows[(rows,)](
                weight,
                threshold,
                projected,
                cols,
                CHUNK=config["CHUNK"],
                ALIGN=row_alignment(cols),
                num_warps=config["num_warps"],
                **OPTIONS,
            )
    return projected


def l1_ball_backward(grad: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    """Gradient with respect to the weight, equation (3), in one launch.

    Args:
        grad: [rows, cols], gradient with respect to the projected weight, in any of the dtypes.
        weight: [rows, cols].
        threshold: float64 [rows] from the forward pass.

    Returns:
        [rows, cols] in the dtype of `weight`.
    """
    weight = check_operand("weight", weight, dim=2)
    grad = check_companion("grad", check_operand("grad", grad), weight, tuple(weight.shape))
    threshold = check_companion("threshold", threshold, weight, weight.shape[:1], torch.float64)
    return project_gradient(grad, weight, threshold, in_place=False)


def project_gradient(
    grad: Tensor, weight: Tensor, threshold: Tensor, in_place: bool = True
) -> Tensor:
    """:func:`l1_ball_backward` of checked arguments; into `grad` if its dtype is the weight's."""
    rows, cols = weight.shape
    reuse = in_place and grad.dtype == weight.dtype
    grad_weight = grad if reuse else torch.empty_like(weight)
    if weight.numel():
        with on_device(weight):
            project_rows_backward[(rows,)](
                grad,
                weight,
                threshold,
                grad_weight,
                cols,
                ALIGN=row_alignment(cols),
                **row_config(cols),
                **OPTIONS,
            )
    return grad_weight
