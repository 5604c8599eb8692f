"""What the ops share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

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
    """``function.apply`` without its Python, for use outside the transforms of torch.func.

    That Python sees to the transforms, and after a matrix product no cache holds it:
    docs/performance.md has what it costs.
    """
    try:
        return super(Function, function).apply  # type: ignore[misc]
    except AttributeError:  # another torch
        return function.apply


def _backward_pass(
    backward: Callable[Concatenate[Any, _Grads], _Gradients],
    again: Callable[Concatenate[Any, _Grads], _Gradients] | None,
) -> Callable[Concatenate[Any, _Grads], _Gradients]:
    """A Function's backward pass, on the backend of its forward pass.

    That backend is `ctx.requested`: autograd runs backward passes on a thread of its own for CUDA
    tensors, which knows of no choice that :func:`lipvae.backend` made for another thread.

    Args:
        backward: by the kernels, which autograd does not see into.
        again: by torch's operations alone, where a graph of the backward pass is wanted, or vmap
            runs it for many gradients. Without it that is refused: torch's `once_differentiable`
            would leave the second derivative out of sums that have other terms, without a word.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: _Grads.args, **none: _Grads.kwargs) -> _Gradients:
        if torch.is_grad_enabled() or transforming() or _many(grads):
            if again is None:
                name = backward.__qualname__.split(".")[0].lstrip("_")
                raise RuntimeError(
                    f"{name} has no second derivative, and none for many gradients at once: "
                    "create_graph and is_grads_batched must be False"
                )
            with backend("reference"):
                return again(ctx, *grads, **none)
        if ctx.requested == requested() or ctx.requested is None:
            return backward(ctx, *grads, **none)
        with backend(ctx.requested):
            return backward(ctx, *grads, **none)

    return run


def _many(grads: tuple[Any, ...]) -> bool:
    """Whether autograd's `is_grads_batched` runs a backward pass, by a vmap of its own."""
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    for grad in grads:  # noqa: SIM110 (as in needs_grad)
        if grad is not None and is_batched(grad):
            return True
    return False


def first_order(
    backward: Callable[Concatenate[Any, _Grads], _Gradients],
) -> Callable[Concatenate[Any, _Grads], _Gradients]:
    """A Function's backward pass that refuses another."""
    return _backward_pass(backward, None)


def any_order(
    backward: Callable[Concatenate[Any, _Grads], _Gradients],
) -> Callable[Concatenate[Any, _Grads], _Gradients]:
    """A Function's backward pass that the reference makes by torch's operations alone."""
    return _backward_pass(backward, backward)


def differentiated_as(
    again: Callable[Concatenate[Any, _Grads], _Gradients],
) -> Callable[
    [Callable[Concatenate[Any, _Grads], _Gradients]],
    Callable[Concatenate[Any, _Grads], _Gradients],
]:
    """A Function's backward pass that `again` makes by torch's operations alone."""
    return lambda backward: _backward_pass(backward, again)


def autocasting(device: torch.device) -> bool:
    """Whether autocast is on for a device."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keeps the dtypes of torch's products inside the block: the kernels know of no autocast."""
    if autocasting(device):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


_MODES = torch._C._TorchDispatchModeKey


def _traced_by_a_mode() -> bool:
    modes = (_MODES.PROXY, _MODES.FAKE)
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)


def compiling() -> bool:
    """Whether something traces this call, torch.compile or another.

    It has to see an operator: what a kernel writes to an address leaves no trace.
    """
    return (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch._C._get_tracing_state() is not None
        or (torch._C._len_torch_dispatch_stack() > 0 and _traced_by_a_mode())
    )


def transforming() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is at work.

    It has to see torch's own operations: its tensors have no address. Inside torch.compile nobody
    can ask; a compiled transform meets custom operators, which most of them refuse.
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode differentiation follows any of the tensors."""
    if forward_ad._current_level < 0:
        return False
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            return True
    return False


def left_to_reference(op: str, *tensors: Tensor | None) -> bool:
    """Whether an op is left to the reference, which transforms and tangents go through.

    Raises:
        RuntimeError: if another backend was requested.
    """
    if not (transforming() or has_tangent(*tensors)):
        return False
    # What torch.compile makes of an op knows of no request, and does not trace one.
    if not torch.compiler.is_compiling() and requested() not in (None, "reference"):
        raise RuntimeError(
            f"{op}: backend {requested()!r} was requested, but the transforms of torch.func and "
            "forward-mode differentiation take the reference"
        )
    return True


def refuse_transforms(what: str, *tensors: Tensor | None) -> None:
    """For what transforms and tangents do not go through.

    Raises:
        NotImplementedError: inside a transform of torch.func, or for a tensor with a tangent.
    """
    if transforming() or has_tangent(*tensors):
        raise NotImplementedError(
            f"{what} cannot be computed inside a transform of torch.func, nor differentiated "
            "forward"
        )


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a derivative, back or forward, in any of the tensors."""
    if has_tangent(*tensors):
        return True
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110 (any() with a generator takes twice as long)
        if tensor is not None and tensor.requires_grad:
            return True
    return False
