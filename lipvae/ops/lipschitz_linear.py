"""The Lipschitz layer, equation (1): projection, matmul, bias and GroupSort.

On a CPU one C++ call does everything, in either direction; on a GPU one kernel does the product and
what follows it, and its float32 products, unless TF32 is allowed, are cuBLAS's between kernels of
ours. No backend keeps the projected weight for the backward pass: it takes the thresholds to make
it again. Training leaves that weight a few per cent of its entries; the C++ backend then lists
them, and both passes go over the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from lipvae import reference
from lipvae._backend import choose, kernel_module, requested
from lipvae.ops._common import (
    autocasting,
    compiling,
    differentiated_as,
    direct_apply,
    left_to_reference,
    needs_grad,
    without_autocast,
)
from lipvae.ops.group_sort import backward as group_sort_backward
from lipvae.ops.group_sort import forward as group_sort_forward
from lipvae.ops.group_sort import group_sort, rows_code_shape
from lipvae.ops.l1_ball import backward as l1_ball_backward
from lipvae.ops.l1_ball import forward as l1_ball_forward
from lipvae.ops.l1_ball import l1_ball, shrink, usable
from lipvae.ops.packed_lipschitz import cpp_backward, cpp_forward


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int,
    warm: Tensor | None,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """[n, in] -> y [n, out], threshold [out], code.

    With group_size 0 nothing is sorted. There is no code without a sort or without `record`.
    """
    backend = choose("lipschitz_linear", x)
    if backend == "cpp":
        code = None
        if group_size and record:
            shape = rows_code_shape(x.shape[0], weight.shape[0], group_size)
            code = x.new_empty(shape, dtype=torch.uint8)
        y, threshold, _ = cpp_forward(x, weight, bias, radius, group_size, warm, code=code)
        return y, threshold, code
    if backend == "triton":
        y, threshold, code = kernel_module("lipschitz_linear").lipschitz_linear_forward(
            x, weight, bias, radius, group_size or None, record, usable(warm, weight)
        )
        return y, threshold, code
    projected, threshold = l1_ball_forward(weight, radius, warm)
    with without_autocast(x.device):
        y, code = linear(x, projected, bias), None
    if group_size:
        y, code = group_sort_forward(y, group_size, 1, record)
    return y, threshold, code


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    code: Tensor | None,
    group_size: int,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias; None for one that is not needed."""
    backend = choose("lipschitz_linear", x)
    if backend == "cpp":
        return cpp_backward(grad, x, weight, group_size, needs, threshold=threshold, code=code)
    if backend == "triton":
        return kernel_module("lipschitz_linear").lipschitz_linear_backward(
            grad, x, weight, threshold, code, group_size or None, tuple(needs)
        )
    if code is not None:
        grad = group_sort_backward(grad, code, group_size, 1)
    grad_x = grad_weight = grad_bias = None
    with without_autocast(x.device):
        if needs[0]:
            grad_x = grad @ shrink(weight, threshold)
        if needs[1]:
            grad_weight = l1_ball_backward(grad.t() @ x, weight, threshold)
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
) -> tuple[Tensor, Tensor, Tensor]:
    y, threshold, code = forward(x, weight, bias, radius, group_size, warm, record)
    return y, threshold, x.new_empty(0, dtype=torch.uint8) if code is None else code


@torch.library.custom_op("lipvae::lipschitz_linear_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    code: Tensor,
    group_size: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    bits = code if group_size else None
    found = backward(grad, x, weight, threshold, bits, group_size, needs)
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
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape[0], weight.shape[0])
    code_shape: tuple[int, ...] = (0,)
    if group_size and record:
        code_shape = rows_code_shape(x.shape[0], weight.shape[0], group_size)
    return (
        y,
        weight.new_empty(weight.shape[0], dtype=torch.float64),
        x.new_empty(code_shape, dtype=torch.uint8),
    )


@_op_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
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
    _, threshold, code = output
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(threshold, code)
    ctx.save_for_backward(x, weight, threshold, code)


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


def _backward_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward pass from the layer's parts, each of which has a second derivative."""
    # Views, or the derivatives would go on into what made the tensors, and call their hooks.
    x, weight, bias = ctx.saved_tensors[:3]
    x, weight, bias = (
        x.view_as(x),
        weight.view_as(weight),
        bias if bias is None else bias.view_as(bias),
    )
    if not torch.is_grad_enabled():
        _, threshold, code = forward(x, weight, bias, ctx.radius, ctx.group_size, None, True)
        found = backward(grad, x, weight, threshold, code, ctx.group_size, _needs(ctx))
        return *found, None, None, None, None
    needs = _needs(ctx)
    wanted = [t for t, need in zip((x, weight, bias), needs, strict=True) if need]
    with without_autocast(x.device):
        y = linear(x, l1_ball(weight, ctx.radius)[0], bias)
        y = group_sort(y, ctx.group_size, -1) if ctx.group_size else y
        gradients = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return *(next(gradients) if need else None for need in needs), None, None, None, None


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
        ctx.group_size, ctx.has_bias, ctx.radius = group_size, bias is not None, radius
        ctx.requested, ctx.record = requested(), None
        if choose("lipschitz_linear", x) == "cpp":
            y, threshold, ctx.record = cpp_forward(
                x, weight, bias, radius, group_size, warm, recording=True
            )
            ctx.save_for_backward(x, weight, bias)
        else:
            y, threshold, code = forward(x, weight, bias, radius, group_size, warm, True)
            ctx.save_for_backward(x, weight, bias, threshold, code)
        thresholds.append(threshold)  # an output without a gradient would cost more
        return y

    @staticmethod
    @differentiated_as(_backward_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs, group_size = _needs(ctx), ctx.group_size
        if ctx.record is None:
            x, weight, _, threshold, code = ctx.saved_tensors
            grads = backward(grad, x, weight, threshold, code, group_size, needs)
        else:
            x, weight, _ = ctx.saved_tensors
            grads = cpp_backward(grad, x, weight, group_size, needs, ctx.record)
        return *grads, None, None, None, None


_apply = direct_apply(_LipschitzLinear)


def _exact_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in the tensors' own dtype, and its derivatives, under autocast too."""
    if not autocasting(x.device):
        return linear(x, weight, bias)
    # A transform differentiates inside the block, where autocast leaves doubles alone.
    bias = None if bias is None else bias.double()
    return linear(x.double(), weight.double(), bias).to(x.dtype)


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
        warm: float64 [out], thresholds of an earlier call from which Newton's method starts. The
            new ones may be written over it.

    Returns:
        y [..., out] and thresholds float64 [out], which may be `warm`.
    """
    g = group_size or 0
    fused = g if g in reference.NETWORKS else 0
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if left_to_reference("lipschitz_linear", x, weight, bias):
        projected, threshold = l1_ball(weight, radius)
        y = _exact_product(x, projected, bias)
        return (group_sort(y, g, -1) if g else y), threshold
    grad = needs_grad(x, weight, bias)
    if compiling():
        y, threshold, _ = torch.ops.lipvae.lipschitz_linear(
            rows, weight, bias, radius, fused, warm, grad
        )
    elif grad:
        thresholds: list[Tensor] = []
        y = _apply(rows, weight, bias, radius, fused, warm, thresholds)
        (threshold,) = thresholds
    else:
        y, threshold, _ = forward(rows, weight, bias, radius, fused, warm, False)
    if rows is not x:
        y = y.reshape(*x.shape[:-1], weight.shape[0])
    return (y if fused == g else group_sort(y, g, -1)), threshold
