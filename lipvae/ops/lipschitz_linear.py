"""The Lipschitz layer, equation (1): projection, matmul, bias and GroupSort.

On a GPU one kernel does all but the thresholds. On a CPU the C++ kernels project the weight and
sort the output in place, around the BLAS call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from lipvae import reference
from lipvae._backend import choose, kernel_module
from lipvae.ops._common import compiling, needs_grad
from lipvae.ops.group_sort import backward as group_sort_backward
from lipvae.ops.group_sort import code_shape as group_sort_code_shape
from lipvae.ops.group_sort import cpp_forward as group_sort_cpp
from lipvae.ops.group_sort import forward as group_sort_forward
from lipvae.ops.group_sort import group_sort
from lipvae.ops.l1_ball import backward as l1_ball_backward
from lipvae.ops.l1_ball import forward as l1_ball_forward


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int,
    warm: Tensor | None,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[n, in] -> y [n, out], threshold [out], projected weight, code; group_size 0: no sort.

    The projected weight stays empty on a GPU, where it is never written to memory.
    """
    backend = choose("lipschitz_linear", x)
    if backend == "triton":
        y, threshold, code = kernel_module("lipschitz_linear").lipschitz_linear_forward(
            x, weight, bias, radius, group_size or None, record, warm
        )
        code = x.new_empty(0, dtype=torch.uint8) if code is None else code
        projected = weight.new_empty(0)
        if not x.is_cuda:
            projected = l1_ball_forward(weight, radius, threshold)[0]
        return y, threshold, projected, code
    projected, threshold = l1_ball_forward(weight, radius, warm)
    y = linear(x, projected, bias)
    code = x.new_empty(0, dtype=torch.uint8)
    if group_size and backend == "cpp":
        y, code = group_sort_cpp(y, y, group_size, 1, record)
    elif group_size:
        y, code = group_sort_forward(y, group_size, 1, record)
    return y, threshold, weight.new_empty(0) if x.is_cuda else projected, code


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    projected: Tensor,
    code: Tensor,
    group_size: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; one that is not needed comes back empty."""
    backend = choose("lipschitz_linear", x)
    if backend == "triton":
        module = kernel_module("lipschitz_linear")
        grads = module.lipschitz_linear_backward(
            grad, x, weight, threshold, code, group_size or None, tuple(needs)
        )
        return tuple(x.new_empty(0) if g is None else g for g in grads)  # type: ignore[return-value]
    if group_size:
        grad = group_sort_backward(grad, code, group_size, 1)
    if needs[0] and not projected.numel():
        tau = threshold.unsqueeze(-1)
        projected = (weight.sign() * (weight.abs() - tau).relu()).to(weight.dtype)
    grad_x = grad @ projected if needs[0] else x.new_empty(0)
    grad_weight = grad_bias = x.new_empty(0)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return forward(x, weight, bias, radius, group_size, warm, record)


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
    return backward(grad, x, weight, threshold, projected, code, group_size, needs)


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
    on_gpu = x.device.type == "cuda"
    return (
        y,
        weight.new_empty(weight.shape[0], dtype=torch.float64),
        weight.new_empty(0) if on_gpu else weight.new_empty(weight.shape),
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
    ) -> tuple[Tensor, Tensor]:
        y, threshold, projected, code = forward(x, weight, bias, radius, group_size, warm, True)
        ctx.group_size, ctx.has_bias = group_size, bias is not None
        ctx.mark_non_differentiable(threshold)
        ctx.set_materialize_grads(False)  # no zeros for the thresholds' missing gradient
        ctx.save_for_backward(x, weight, threshold, projected, code)
        return y, threshold

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        needs = _needs(ctx)
        x, weight, threshold, projected, code = ctx.saved_tensors
        grads = backward(grad, x, weight, threshold, projected, code, ctx.group_size, needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 3


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
    rows = x.reshape(-1, x.shape[-1])
    grad = needs_grad(x, weight, bias)
    if compiling():
        y, threshold, _, _ = torch.ops.lipvae.lipschitz_linear(
            rows, weight, bias, radius, fused, warm, grad
        )
    elif grad:
        y, threshold = _LipschitzLinear.apply(rows, weight, bias, radius, fused, warm)
    else:
        y, threshold, _, _ = forward(rows, weight, bias, radius, fused, warm, False)
    y = y.reshape(*x.shape[:-1], weight.shape[0])
    return (y if fused == g else group_sort(y, g, -1)), threshold
