"""The Lipschitz layer, equation (1): projection, matmul, bias and GroupSort.

On a GPU one kernel does all but the thresholds. On a CPU one C++ call does everything forward.
Training leaves the projected weight a few per cent of its entries; the C++ backend then lists them,
and both passes go over the list. The backward products of any other weight are the BLAS's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from lipvae import reference
from lipvae._backend import choose, kernel_module, requested
from lipvae.ops._common import (
    compiling,
    direct_apply,
    needs_grad,
    on_requested_backend,
    without_autocast,
)
from lipvae.ops.group_sort import backward as group_sort_backward
from lipvae.ops.group_sort import code_shape as group_sort_code_shape
from lipvae.ops.group_sort import forward as group_sort_forward
from lipvae.ops.group_sort import group_sort
from lipvae.ops.l1_ball import backward as l1_ball_backward
from lipvae.ops.l1_ball import cpp_backward as l1_ball_backward_cpp
from lipvae.ops.l1_ball import forward as l1_ball_forward
from lipvae.ops.packed_lipschitz import cpp_backward, cpp_forward


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int,
    warm: Tensor | None,
    record: bool,
    project: bool,
    listing: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """[n, in] -> y [n, out], threshold [out], projected weight, code, entries.

    With group_size 0 nothing is sorted.
    There is no projected weight without `project` or on a GPU, where it is never written to memory,
    and no code without a sort or without `record`. `entries` takes its place with `listing`, where
    there are few.
    """
    backend = choose("lipschitz_linear", x)
    if backend == "cpp":
        return cpp_forward(
            x,
            weight,
            bias,
            radius,
            group_size,
            warm,
            record=record,
            project=project,
            listing=listing,
        )
    if backend == "triton":
        y, threshold, code = kernel_module("lipschitz_linear").lipschitz_linear_forward(
            x, weight, bias, radius, group_size or None, record, warm
        )
        if x.is_cuda or not project:
            return y, threshold, None, code, None
        return y, threshold, l1_ball_forward(weight, radius, threshold)[0], code, None
    projected, threshold = l1_ball_forward(weight, radius, warm)
    with without_autocast(x.device):
        y, code = linear(x, projected, bias), None
    if group_size:
        y, code = group_sort_forward(y, group_size, 1, record)
    return y, threshold, projected if project and not x.is_cuda else None, code, None


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    projected: Tensor | None,
    code: Tensor | None,
    group_size: int,
    needs: Sequence[bool],
    entries: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias; None for one that is not needed."""
    backend = choose("lipschitz_linear", x)
    if backend == "triton":
        return kernel_module("lipschitz_linear").lipschitz_linear_backward(
            grad, x, weight, threshold, code, group_size or None, tuple(needs)
        )
    if code is not None:
        grad = group_sort_backward(grad, code, group_size, 1)
    grad_x = grad_weight = grad_bias = None
    if entries is not None:
        if needs[0] or needs[1]:
            grad_x, grad_weight = cpp_backward(
                grad, x, entries, threshold, needs_x=needs[0], needs_weight=needs[1]
            )
        return grad_x, grad_weight, grad.sum(0) if needs[2] else None
    if needs[0]:
        if projected is None:
            tau = threshold.unsqueeze(-1)
            projected = (weight.sign() * (weight.abs() - tau).relu()).to(weight.dtype)
        grad_x = grad @ projected
    if needs[1]:
        grad_weight = grad.t() @ x
        if backend == "cpp":  # in place: nobody else has seen the product
            l1_ball_backward_cpp(grad_weight, grad_weight, weight, threshold)
        else:
            grad_weight = l1_ball_backward(grad_weight, weight, threshold)
    if needs[2]:
        grad_bias = grad.sum(0)
    return grad_x, grad_weight, grad_bias


@torch.library.custom_op("lipvae::lipschitz_linear", mutates_args=())
def _op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int,
    warm: Tensor | None,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, threshold, projected, code, _ = forward(
        x, weight, bias, radius, group_size, warm, record, record
    )
    projected = weight.new_empty(0) if projected is None else projected
    code = x.new_empty(0, dtype=torch.uint8) if code is None else code
    return y, threshold, projected, code


@torch.library.custom_op("lipvae::lipschitz_linear_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    projected: Tensor,
    code: Tensor,
    group_size: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    kept = projected if projected.numel() else None
    bits = code if group_size else None
    found = backward(grad, x, weight, threshold, kept, bits, group_size, needs)
    grad_x, grad_weight, grad_bias = (x.new_empty(0) if g is None else g for g in found)
    return grad_x, grad_weight, grad_bias


@_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int,
    warm: Tensor | None,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape[0], weight.shape[0])
    code_shape = group_sort_code_shape(y, group_size, 1) if group_size and record else (0,)
    kept = record and x.device.type != "cuda"
    return (
        y,
        weight.new_empty(weight.shape[0], dtype=torch.float64),
        weight.new_empty(weight.shape if kept else (0,)),
        x.new_empty(code_shape, dtype=torch.uint8),
    )


@_op_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    projected: Tensor,
    code: Tensor,
    group_size: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    x_, w_, b_ = (
        x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)
    )
    return x_, w_, b_


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, ctx.group_size, _, _ = inputs
    _, threshold, projected, code = output
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(threshold, projected, code)
    ctx.save_for_backward(x, weight, threshold, projected, code)


def _needs(ctx: Any) -> list[bool]:
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return [needs_x, needs_weight, needs_bias and ctx.has_bias]


def _op_vjp(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = _needs(ctx)
    grads = torch.ops.lipvae.lipschitz_linear_backward(
        grad, *ctx.saved_tensors, ctx.group_size, needs
    )
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 4


_op.register_autograd(_op_vjp, setup_context=_op_setup)


class _LipschitzLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        radius: float,
        group_size: int,
        warm: Tensor | None,
        thresholds: list[Tensor],
    ) -> Tensor:
        y, threshold, projected, code, entries = forward(
            x, weight, bias, radius, group_size, warm, True, ctx.needs_input_grad[0], True
        )
        thresholds.append(threshold)  # an output without a gradient would cost more
        ctx.group_size, ctx.has_bias = group_size, bias is not None
        ctx.requested = requested()
        ctx.save_for_backward(x, weight, threshold, projected, code, entries)
        return y

    @staticmethod
    @once_differentiable
    @on_requested_backend
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = _needs(ctx)
        x, weight, threshold, projected, code, entries = ctx.saved_tensors
        grads = backward(
            grad, x, weight, threshold, projected, code, ctx.group_size, needs, entries
        )
        return *grads, None, None, None, None


_apply = direct_apply(_LipschitzLinear)


def lipschitz_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int | None,
    warm: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """GroupSort_g(P_r(W) x + b), equation (1), and the rows' thresholds.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out] or None.
        radius: r > 0.
        group_size: g, a divisor of out; None leaves the sort out. Sizes without a kernel sort
            after the layer, by the reference.
        warm: float64 [out], thresholds of an earlier call from which Newton's method starts.

    Returns:
        y [..., out] and thresholds float64 [out].
    """
    g = group_size or 0
    fused = g if g in reference.NETWORKS else 0
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    grad = needs_grad(x, weight, bias)
    if compiling():
        y, threshold, _, _ = torch.ops.lipvae.lipschitz_linear(
            rows, weight, bias, radius, fused, warm, grad
        )
    elif grad:
        thresholds: list[Tensor] = []
        y = _apply(rows, weight, bias, radius, fused, warm, thresholds)
        (threshold,) = thresholds
    else:
        y, threshold, *_ = forward(rows, weight, bias, radius, fused, warm, False, False)
    if rows is not x:
        y = y.reshape(*x.shape[:-1], weight.shape[0])
    return (y if fused == g else group_sort(y, g, -1)), threshold
