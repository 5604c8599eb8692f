"""Projection of rows onto the L1 ball, equations (1) and (3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipvae import reference
from lipvae._backend import choose, cpp_module, kernel_module, requested
from lipvae._workers import kernel_threads
from lipvae.ops._common import (
    CPU,
    any_order,
    compiling,
    dtype_code,
    left_to_reference,
    needs_grad,
)


def usable(warm: Tensor | None, weight: Tensor) -> Tensor | None:
    """The thresholds to start from, or None where they are of a weight that was replaced."""
    if (
        warm is None
        or warm.dtype != torch.float64
        or warm.shape != weight.shape[:1]
        or not warm.is_contiguous()
        or warm.device != weight.device
    ):
        return None
    return warm


def forward(weight: Tensor, radius: float, warm: Tensor | None) -> tuple[Tensor, Tensor]:
    """[rows, cols] -> projected [rows, cols], threshold float64 [rows]."""
    warm = usable(warm, weight)
    backend = choose("l1_ball", weight)
    if backend == "cpp":
        return cpp_forward(weight, radius, warm)
    if backend == "triton":
        return kernel_module("l1_ball").l1_ball_forward(weight, radius, warm)
    threshold = reference.l1_ball_threshold(weight, radius)
    return reference.project_l1_ball(weight, radius).clone(
        memory_format=torch.contiguous_format
    ), threshold


def cpp_forward(weight: Tensor, radius: float, warm: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`forward` by the C++ kernel."""
    weight = weight.contiguous()
    rows, cols = weight.shape
    projected = torch.empty_like(weight)
    threshold = torch.empty(rows, dtype=torch.float64, device=CPU)
    cpp_module().l1_ball_forward(
        weight.data_ptr(),
        rows,
        cols,
        radius,
        0 if warm is None else warm.data_ptr(),
        projected.data_ptr(),
        threshold.data_ptr(),
        dtype_code(weight),
        kernel_threads(),
    )
    return projected, threshold


def shrink(weight: Tensor, threshold: Tensor) -> Tensor:
    """The projection by thresholds found before, for products by torch."""
    if choose("l1_ball", weight) == "triton":
        return kernel_module("l1_ball").l1_ball_shrink(weight, threshold)
    tau = threshold.unsqueeze(-1)
    return (weight.sign() * (weight.abs() - tau).relu()).to(weight.dtype)


def backward(grad: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    """Gradient with respect to the weight, equation (3)."""
    backend = choose("l1_ball", weight)
    if backend == "cpp":
        return cpp_backward(grad, weight, threshold)
    if backend == "triton":
        return kernel_module("l1_ball").l1_ball_backward(grad, weight, threshold)
    return _reference_backward(grad, weight, threshold)


def cpp_backward(grad: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    """:func:`backward` by the C++ kernel."""
    grad, weight = grad.contiguous(), weight.contiguous()
    out = torch.empty_like(grad)
    rows, cols = weight.shape
    cpp_module().l1_ball_backward(
        grad.data_ptr(),
        weight.data_ptr(),
        threshold.data_ptr(),
        out.data_ptr(),
        rows,
        cols,
        dtype_code(weight),
        kernel_threads(),
    )
    return out


def _reference_backward(grad: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    tau = threshold.unsqueeze(-1)
    active = weight.abs() > tau
    sign = torch.where(active, weight.sign(), torch.zeros_like(weight))
    mean = (sign * grad).sum(-1, keepdim=True) / active.sum(-1, keepdim=True).clamp(min=1)
    found = torch.where(tau > 0, torch.where(active, grad - sign * mean, 0.0), grad)
    return found.contiguous()


@torch.library.custom_op("lipvae::l1_ball", mutates_args=())
def _op(weight: Tensor, radius: float, warm: Tensor | None) -> tuple[Tensor, Tensor]:
    return forward(weight, radius, warm)


@torch.library.custom_op("lipvae::l1_ball_backward", mutates_args=())
def _op_backward(grad: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    return backward(grad, weight, threshold)


@_op.register_fake
def _(weight: Tensor, radius: float, warm: Tensor | None) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        weight.new_empty(weight.shape[0], dtype=torch.float64),
    )


@_op_backward.register_fake
def _(grad: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])


def _op_vjp(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    weight, threshold = ctx.saved_tensors
    return torch.ops.lipvae.l1_ball_backward(grad, weight, threshold), None, None


_op.register_autograd(_op_vjp, setup_context=_op_setup)


class _L1Ball(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, radius: float, warm: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        projected, threshold = forward(weight, radius, warm)
        ctx.requested = requested()
        ctx.save_for_backward(weight, threshold)
        ctx.mark_non_differentiable(threshold)
        ctx.set_materialize_grads(False)  # no zeros for the thresholds' missing gradient
        return projected, threshold

    @staticmethod
    @any_order
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return None, None, None
        weight, threshold = ctx.saved_tensors
        return backward(grad, weight, threshold), None, None


def l1_ball(weight: Tensor, radius: float, warm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Projects rows onto the L1 ball and returns their thresholds.

    Args:
        weight: [rows, cols].
        radius: r > 0.
        warm: float64 [rows], thresholds of an earlier call from which Newton's method starts.

    Returns:
        The projection [rows, cols], and the thresholds float64 [rows], 0 inside the ball.
    """
    if left_to_reference("l1_ball", weight):
        return (
            reference.project_l1_ball(weight, radius),
            reference.l1_ball_threshold(weight.detach(), radius),
        )
    if compiling():
        return torch.ops.lipvae.l1_ball(weight, radius, warm)
    if not needs_grad(weight):
        return forward(weight, radius, warm)
    return _L1Ball.apply(weight, radius, warm)
