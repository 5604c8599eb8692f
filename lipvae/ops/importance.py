"""Log-likelihood of a batch under K decoded samples each, equation (5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipvae import reference
from lipvae._backend import choose, cpp_module, kernel_module, requested
from lipvae._workers import kernel_threads
from lipvae.ops._common import (
    any_order,
    compiling,
    dtype_code,
    left_to_reference,
    needs_grad,
)

FAMILY_CODES = {family: code for code, family in enumerate(reference.FAMILIES)}


def forward(parameters: Tensor, target: Tensor, family: str) -> Tensor:
    """[K, B, P * D], [B, D] -> [K, B]."""
    backend = choose("importance", parameters)
    if backend == "cpp":
        parameters, target = parameters.contiguous(), target.contiguous()
        return cpp_forward(parameters, target, parameters.new_empty(parameters.shape[:2]), family)
    if backend == "triton":
        return kernel_module("importance").importance_forward(parameters, target, family)
    return reference.importance(parameters.to(result_dtype(parameters)), target, family)


def cpp_forward(parameters: Tensor, target: Tensor, out: Tensor, family: str) -> Tensor:
    """:func:`forward` by the C++ kernel, from and into contiguous tensors."""
    cpp_module().importance_forward(
        parameters.data_ptr(),
        target.data_ptr(),
        out.data_ptr(),
        *out.shape,
        target.shape[1],
        FAMILY_CODES[family],
        dtype_code(parameters),
        kernel_threads(),
    )
    return out


def result_dtype(parameters: Tensor) -> torch.dtype:
    """dtype of the log-likelihood: float32 for half inputs, as the kernels accumulate."""
    return parameters.dtype if parameters.dtype == torch.float64 else torch.float32


def backward(grad: Tensor, parameters: Tensor, target: Tensor, family: str) -> Tensor:
    """Gradient with respect to the parameters."""
    backend = choose("importance", parameters)
    if backend == "cpp":
        grad, parameters = grad.contiguous(), parameters.contiguous()
        target = target.contiguous()
        k, b, _ = parameters.shape
        grad_parameters = torch.empty_like(parameters)
        cpp_module().importance_backward(
            grad.data_ptr(),
            parameters.data_ptr(),
            target.data_ptr(),
            grad_parameters.data_ptr(),
            k,
            b,
            target.shape[1],
            FAMILY_CODES[family],
            dtype_code(parameters),
            kernel_threads(),
        )
        return grad_parameters
    if backend == "triton":
        return kernel_module("importance").importance_backward(grad, parameters, target, family)
    return reference.importance_backward(grad, parameters, target, family)


@torch.library.custom_op("lipvae::importance", mutates_args=())
def _op(parameters: Tensor, target: Tensor, family: str) -> Tensor:
    return forward(parameters, target, family)


@torch.library.custom_op("lipvae::importance_backward", mutates_args=())
def _op_backward(grad: Tensor, parameters: Tensor, target: Tensor, family: str) -> Tensor:
    return backward(grad, parameters, target, family).contiguous()


@_op.register_fake
def _(parameters: Tensor, target: Tensor, family: str) -> Tensor:
    return parameters.new_empty(parameters.shape[:2], dtype=result_dtype(parameters))


@_op_backward.register_fake
def _(grad: Tensor, parameters: Tensor, target: Tensor, family: str) -> Tensor:
    return torch.empty_like(parameters, memory_format=torch.contiguous_format)


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    parameters, target, ctx.family = inputs
    ctx.save_for_backward(parameters, target)


def _op_vjp(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    parameters, target = ctx.saved_tensors
    return torch.ops.lipvae.importance_backward(grad, parameters, target, ctx.family), None, None


_op.register_autograd(_op_vjp, setup_context=_op_setup)


class _Importance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameters: Tensor, target: Tensor, family: str) -> Tensor:
        ctx.requested = requested()
        ctx.save_for_backward(parameters, target)
        ctx.family = family
        return forward(parameters, target, family)

    @staticmethod
    @any_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parameters, target = ctx.saved_tensors
        return backward(grad, parameters, target, ctx.family), None, None


def importance(parameters: Tensor, target: Tensor, family: str) -> Tensor:
    """log p(x | z_k) summed over the dimensions of x.

    Args:
        parameters: [K, B, P * D], the decoder's output.
        target: [B, D] in [0, 1], of the same dtype. It carries no gradient: where one is asked
            for, the reference computes the whole op.
        family: a key of `reference.FAMILIES`.

    Returns:
        [K, B], float32 for half inputs and the inputs' dtype otherwise.
    """
    if left_to_reference("importance", parameters, target) or needs_grad(target):
        return reference.importance(parameters.to(result_dtype(parameters)), target, family)
    if compiling():
        return torch.ops.lipvae.importance(parameters, target, family)
    if needs_grad(parameters):
        return _Importance.apply(parameters, target, family)
    return forward(parameters, target, family)
