"""The Lipschitz layer y = GroupSort_g(P_r(W) x + b), equation (1), and its gradient.

Forward is two launches: the rows' thresholds, and a matrix product that on the finished tile adds
the bias, sorts the groups and packs the comparators' outcomes. The unsorted product never reaches
memory. For few rows neither does the projected weight: the product soft-thresholds each tile of
the weight as it arrives. For many rows that would cost it more than its arithmetic, a tile being
projected again for every row of tiles, so the first launch writes P(W), the same bits.

Backward is the sort undone, the gradients with respect to x (by the product that projects, or by
P(W) made again in a launch) and to P_r(W) (with the bias's in the same launch), and equation (3) in
place.

Operands whose rows are not multiples of 8 bytes are copied with zeros at the ends of their rows, in
launches of torch's.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lipvae.kernels import _tuning
from lipvae.kernels._common import (
    OPTIONS,
    alignment,
    cdiv,
    check_companion,
    check_operand,
    check_radius,
    next_power_of_2,
    on_device,
    padded,
    padded_length,
    result,
)
from lipvae.kernels._lipschitz_products import KERNELS, tiles
from lipvae.kernels._tuning import Machine, Tile
from lipvae.kernels.group_sort import NETWORKS, code_shape, group_sort_backward
from lipvae.kernels.l1_ball import (
    l1_ball_by_threshold,
    l1_ball_shrink,
    l1_ball_threshold,
    project_gradient,
)

Shape = tuple[int, int, int]


@functools.lru_cache(maxsize=4096)
def _ranked(
    product: str, kind: str, group: int, shape: Shape, device: Machine, projecting: bool
) -> list[Tile]:
    """The tiles of a product of one shape, kept so that a launch does not rank them again."""
    found = tiles(product, kind, device.family, group, projecting)
    return _tuning.ranked(found, shape, kind, device, projecting)


@functools.lru_cache(maxsize=4096)
def _projects(product: str, kind: str, group: int, shape: Shape, device: Machine) -> bool:
    if kind == "ieee":  # whose arithmetic outweighs the projection
        return True
    plain, projecting = (
        _ranked(product, kind, group, shape, device, choice) for choice in (False, True)
    )
    return _tuning.projects(plain, projecting, shape, kind, device)


def _machine_and_kind(like: Tensor) -> tuple[Machine, str]:
    device = _tuning.machine(like.device.index if like.is_cuda else None)
    return device, _tuning.product_kind(like.dtype, device.family)


def projects(product: str, like: Tensor, shape: Shape, group: int = 1) -> bool:
    """Whether a product of this shape projects the weight itself, by the cost model.

    Args:
        product: "forward" or "grad_x".
        like: one of the operands.
        shape: [rows, cols, inner] of the product.
        group: the group size, 1 for no sort.
    """
    device, kind = _machine_and_kind(like)
    return _projects(product, kind, group, shape, device)


def _launch(
    product: str,
    arguments: tuple[Any, ...],
    shape: Shape,
    group: int = 1,
    projecting: bool = False,
    **fixed: Any,
) -> None:
    """Runs a product kernel on the tile that the shape [rows, cols, inner] gets."""
    like = arguments[0]
    rows, cols, inner = shape
    device, kind = _machine_and_kind(like)
    ranked = _ranked(product, kind, group, shape, device, projecting)
    fixed["ALIGN_COLS"] = alignment(cols, like.dtype)
    if product == "grad_weight":
        fixed["ALIGN_ROWS"] = alignment(rows, like.dtype)
    else:
        fixed["ALIGN_INNER"] = alignment(inner, like.dtype)
        fixed["PROJECT"] = projecting

    def launch(tile: Tile) -> None:
        grid = (cdiv(rows, tile.rows) * cdiv(cols, tile.cols),)
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
        tile = ranked[0]
        if _tuning.measuring():
            bucket = (next_power_of_2(rows), next_power_of_2(cols), inner)
            key = (product, projecting, like.dtype, like.device, kind, group, bucket)
            tile = _tuning.pick(key, ranked, launch)
        launch(tile)


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
    threshold: Tensor | None = None,
    projected: Tensor | None = None,
    projecting: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y = GroupSort_g(P_r(W) x + b), equation (1), in two launches.

    With `threshold` and, where the product does not project, `projected` it takes one.

    Args:
        x: [rows, in], float32, float16 or bfloat16.
        weight: [out, in], the dtype of x.
        bias: [out] in the dtype of x, or None.
        radius: radius r > 0.
        group_size: 2, 4 or 8, a divisor of out; None or 1 for no sort.
        record: whether to record the comparators for the backward pass.
        warm: float64 [out], thresholds to start from.
        threshold: float64 [out], the thresholds themselves, found before.
        projected: [out, in], P(W) by these thresholds.
        projecting: whether the product projects tiles of the weight; None leaves it to the cost
            model.

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
    shape = (rows, cols, inner)
    if projecting is None:
        projecting = rows == 0 or projects("forward", x, shape, group)
    if threshold is None:
        if projecting:
            threshold = l1_ball_threshold(weight, radius, warm)
        else:
            projected, threshold = l1_ball_by_threshold(weight, radius, warm)
    threshold = check_companion("threshold", threshold, x, (cols,), torch.float64)
    if not projecting:
        if projected is None:
            projected = l1_ball_shrink(weight, threshold)
        weight = check_companion("projected", projected, x, (cols, inner), x.dtype)
    inner = padded_length(inner, x.dtype)
    x, weight = padded(x, rows, inner), padded(weight, cols, inner)
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
            projecting,
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
    projecting: bool | None = None,
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
        projecting: as in the forward pass, of the product that gives the gradient of x.

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
    wide, tall = padded_length(inner, x.dtype), padded_length(cols, x.dtype)
    whole = padded(grad, rows, tall)
    if needs[0]:
        grad_x = x.new_empty(rows, wide)
        if rows:
            shape = (rows, wide, tall)
            if projecting is None:
                projecting = projects("grad_x", x, shape)
            factor = weight if projecting else l1_ball_shrink(weight, threshold)
            factor, limits = padded(factor, tall, wide), padded(threshold, tall)
            _launch("grad_x", (whole, factor, limits, grad_x), shape, projecting=projecting)
        grad_x = grad_x[:, :inner].contiguous()
    if needs[1]:
        grad_projected = result(x, (tall, wide), torch.float32, written=rows > 0)
        sums = result(x, (tall,), torch.float32, written=rows > 0)
        if rows:
            operands = (whole, padded(x, rows, wide), grad_projected, sums)
            _launch("grad_weight", operands, (tall, wide, rows), BIAS=needs[2])
        grad_projected = grad_projected[:cols, :inner].contiguous()
        grad_weight = project_gradient(grad_projected, weight, threshold)
        grad_bias = sums[:cols].to(x.dtype) if needs[2] else None
    elif needs[2]:
        grad_bias = grad.sum(0, dtype=torch.float32).to(x.dtype)
    return grad_x, grad_weight, grad_bias
