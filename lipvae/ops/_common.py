"""What the ops share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lipvae._backend import backend, requested

_Grads = ParamSpec("_Grads")
_Gradients = TypeVar("_Gradients")

# torch.empty without it would follow torch.set_default_device.
CPU = torch.device("cpu")

_CPP_DTYPE_CODES = {torch.float32: 0, torch.float64: 1}


def dtype_code(tensor: Tensor) -> int:
    """The C++ extension's code of a dtype."""
    return _CPP_DTYPE_CODES[tensor.dtype]


def direct_apply(function: type[Function]) -> Callable[..., Any]:
    """``function.apply`` without its Python, outside the transforms of torch.func.

    That Python sees to the transforms, and after a matrix product no cache holds it:
    docs/performance.md has what it costs.
    """
    try:
        direct = super(Function, function).apply  # type: ignore[misc]
        transforming = torch._C._are_functorch_transforms_active
    except AttributeError:  # another torch
        return function.apply

    def apply(*args: Any) -> Any:
        if transforming():
            return function.apply(*args)
        return direct(*args)

    return apply


def first_order(
    backward: Callable[Concatenate[Any, _Grads], _Gradients],
) -> Callable[Concatenate[Any, _Grads], _Gradients]:
    """A Function's backward pass without a second derivative, on the backend of its forward pass.

    That backend is `ctx.requested`: autograd runs backward passes on a thread of its own for CUDA
    tensors, which knows of no choice that :func:`lipvae.backend` made for another thread. Only a
    graph of the backward pass needs torch's decorator, whose Python no cache holds after a matrix
    product.
    """
    refusing_another = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *grads: _Grads.args, **none: _Grads.kwargs) -> _Gradients:
        call = refusing_another if torch.is_grad_enabled() else backward
        if ctx.requested == requested() or ctx.requested is None:
            return call(ctx, *grads, **none)
        with backend(ctx.requested):
            return call(ctx, *grads, **none)

    return run


def autocasting(device: torch.device) -> bool:
    """Whether autocast is on for a device."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keeps the dtypes of torch's products inside the block: the kernels know of no autocast."""
    if autocasting(device):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def compiling() -> bool:
    """Whether torch.compile or torch.export traces this call."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient with respect to any of the tensors."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110 (any() with a generator takes twice as long)
        if tensor is not None and tensor.requires_grad:
            return True
    return False
