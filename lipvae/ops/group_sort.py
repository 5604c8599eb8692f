"""GroupSort."""

from __future__ import annotations

import math
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


def _extent(x: Tensor, dim: int) -> tuple[int, int, int]:
    # Not by numel(), which makes a symbolic size a constant.
    return math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])


def code_shape(x: Tensor, group_size: int, dim: int) -> tuple[int, int, int]:
    """Shape of the comparators' outcomes, one bit each."""
    return _code_shape(*_extent(x, dim), group_size)


def rows_code_shape(rows: int, columns: int, group_size: int) -> tuple[int, int, int]:
    """The same for a matrix whose rows are sorted."""
    return _code_shape(rows, columns, 1, group_size)


def _code_shape(outer: int, n: int, inner: int, group_size: int) -> tuple[int, int, int]:
    return len(reference.NETWORKS[group_size]), outer, (n // group_size * inner + 7) // 8


def forward(x: Tensor, group_size: int, dim: int, record: bool) -> tuple[Tensor, Tensor | None]:
    """x -> sorted x, code (None without `record`)."""
    backend = choose("group_sort", x)
    if backend == "cpp":
        x = x.contiguous()
        y = torch.empty_like(x)
        return y, cpp_forward(x, y, _extent(x, dim), group_size, record)
    if backend == "triton":
        y, code = kernel_module("group_sort").group_sort_forward(x, group_size, dim, record)
    else:
        y, code = reference.group_sort_network(x, group_size, dim)
    return y, code if record else None


def cpp_forward(
    x: Tensor, y: Tensor, extent: tuple[int, int, int], group_size: int, record: bool
) -> Tensor | None:
    """Sorts contiguous x of (outer, n, inner) numbers into y, which may be x; returns the code."""
    code = None
    if record:
        code = torch.empty(_code_shape(*extent, group_size), dtype=torch.uint8, device=CPU)
    cpp_module().group_sort_forward(
        x.data_ptr(),
        y.data_ptr(),
        0 if code is None else code.data_ptr(),
        *extent,
        group_size,
        dtype_code(x),
        kernel_threads(),
    )
    return code


def backward(grad: Tensor, code: Tensor, group_size: int, dim: int) -> Tensor:
    """Gradient with respect to the unsorted tensor."""
    backend = choose("group_sort", grad)
    if backend == "cpp":
        grad = grad.contiguous()
        grad_x = torch.empty_like(grad)
        cpp_module().group_sort_backward(
            grad.data_ptr(),
            code.data_ptr(),
            grad_x.data_ptr(),
            *_extent(grad, dim),
            group_size,
            dtype_code(grad),
            kernel_threads(),
        )
        return grad_x
    if backend == "triton":
        return kernel_module("group_sort").group_sort_backward(grad, code, group_size, dim)
    return reference.group_sort_network_backward(grad, code, group_size, dim)


@torch.library.custom_op("lipvae::group_sort", mutates_args=())
def _op(x: Tensor, group_size: int, dim: int, record: bool) -> tuple[Tensor, Tensor]:
    y, code = forward(x, group_size, dim, record)
    return y, x.new_empty(0, dtype=torch.uint8) if code is None else code


@torch.library.custom_op("lipvae::group_sort_backward", mutates_args=())
def _op_backward(grad: Tensor, code: Tensor, group_size: int, dim: int) -> Tensor:
    return backward(grad, code, group_size, dim)


@_op.register_fake
def _(x: Tensor, group_size: int, dim: int, record: bool) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(code_shape(x, group_size, dim) if record else (0,), dtype=torch.uint8)


@_op_backward.register_fake
def _(grad: Tensor, code: Tensor, group_size: int, dim: int) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, ctx.group_size, ctx.dim, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _op_vjp(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:
    (code,) = ctx.saved_tensors
    grad_x = torch.ops.lipvae.group_sort_backward(grad, code, ctx.group_size, ctx.dim)
    return grad_x, None, None, None


_op.register_autograd(_op_vjp, setup_context=_op_setup)


class _GroupSort(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_size: int, dim: int) -> Tensor:
        y, code = forward(x, group_size, dim, True)
        ctx.requested = requested()
        ctx.save_for_backward(code)
        ctx.group_size, ctx.dim = group_size, dim
        return y

    @staticmethod
    @any_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (code,) = ctx.saved_tensors
        return backward(grad, code, ctx.group_size, ctx.dim), None, None


def group_sort(x: Tensor, group_size: int, dim: int) -> Tensor:
    """Sorts ascending inside groups of neighbours along `dim`.

    Args:
        x: any shape with at least one dimension.
        group_size: g >= 1, a divisor of the length along `dim`. Kernels cover 2, 4 and 8; every
            other size takes the reference, torch.sort.
        dim: the sorted dimension, in [-x.dim(), x.dim()).

    Returns:
        The shape of x.
    """
    if group_size == 1:
        return x
    dim = dim % x.dim()
    if group_size not in reference.NETWORKS:
        if not compiling():
            choose("group_sort", x, kernel=False)
        return reference.group_sort(x, group_size, dim)
    if left_to_reference("group_sort", x):
        return reference.group_sort(x, group_size, dim)
    grad = needs_grad(x)
    if compiling():
        return torch.ops.lipvae.group_sort(x, group_size, dim, grad)[0]
    return _GroupSort.apply(x, group_size, dim) if grad else forward(x, group_size, dim, False)[0]
