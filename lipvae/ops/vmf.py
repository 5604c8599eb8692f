"""Samples of the von Mises-Fisher distribution, equation (4), reparameterised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipvae import reference
from lipvae._backend import choose, cpp_module, kernel_module, requested
from lipvae._workers import kernel_threads
from lipvae.ops._common import (
    compiling,
    dtype_code,
    first_order,
    needs_grad,
    refuse_transforms,
)
from lipvae.ops.vmf_density import moments

MAX_DIM = 8192  # of the kernels, which hold a sample's numbers on the stack or in registers


def forward(
    loc: Tensor, concentration: Tensor, samples: int, seed: Tensor, start: int, shared: bool
) -> tuple[Tensor, Tensor]:
    """[rows, m], [rows] -> x [S, rows, m], t float64 [S, rows]."""
    rows, dim = loc.shape
    backend = _backend(loc, kernel=dim <= MAX_DIM)
    if backend == "cpp":
        loc, concentration = loc.contiguous(), concentration.contiguous()
        x = loc.new_empty(samples, rows, dim)
        t = loc.new_empty(samples, rows, dtype=torch.float64)
        cpp_module().vmf_sample(
            loc.data_ptr(),
            concentration.data_ptr(),
            x.data_ptr(),
            t.data_ptr(),
            samples,
            rows,
            dim,
            int(seed) & 0xFFFFFFFFFFFFFFFF,
            start,
            shared,
            dtype_code(loc),
            kernel_threads(),
        )
        return x, t
    if backend == "triton":
        return kernel_module("vmf").vmf_forward(loc, concentration, samples, seed, start, shared)
    return reference.sample_vmf(loc, concentration, samples, seed, start, shared)


def _backend(like: Tensor, *, kernel: bool = True) -> str:
    """What computes for `like`: unlike the other Triton kernels, these take float64 as well."""
    narrow = like.dtype == torch.float64 and (like.is_cuda or requested() == "triton")
    return choose("vmf", like.new_empty(0, dtype=torch.float32) if narrow else like, kernel=kernel)


def angle_derivative(t: Tensor, concentration: Tensor, dim: int) -> Tensor:
    """d acos(1 - t) / d kappa at a fixed level of the distribution function, float64 [S, rows]."""
    kappa = concentration.double().contiguous()
    complement = moments(kappa, dim).complement
    backend = _backend(concentration)
    if backend == "cpp":
        node, weight = reference.quadrature()
        t = t.contiguous()
        out = torch.empty_like(t)
        cpp_module().vmf_angle(
            t.data_ptr(),
            kappa.data_ptr(),
            complement.contiguous().data_ptr(),
            node.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            *t.shape,
            dim,
            len(node),
            kernel_threads(),
        )
        return out
    if backend == "triton":
        return kernel_module("vmf").vmf_angle(t, kappa, complement, dim)
    return reference.angle_derivative(t, kappa, complement, dim)


def backward(
    grad: Tensor, grad_t: Tensor | None, loc: Tensor, concentration: Tensor, x: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to loc and concentration."""
    dphi = angle_derivative(t, concentration, loc.shape[-1])
    return reference.sample_vmf_backward(grad, grad_t, loc, x, t, dphi)


@torch.library.custom_op("lipvae::vmf", mutates_args=())
def _op(
    loc: Tensor, concentration: Tensor, samples: int, seed: Tensor, start: int, shared: bool
) -> tuple[Tensor, Tensor]:
    return forward(loc, concentration, samples, seed, start, shared)


@torch.library.custom_op("lipvae::vmf_backward", mutates_args=())
def _op_backward(
    grad: Tensor, grad_t: Tensor, loc: Tensor, concentration: Tensor, x: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    by_loc, by_concentration = backward(grad, grad_t, loc, concentration, x, t)
    return by_loc.contiguous(), by_concentration.contiguous()


@_op.register_fake
def _(
    loc: Tensor, concentration: Tensor, samples: int, seed: Tensor, start: int, shared: bool
) -> tuple[Tensor, Tensor]:
    rows, dim = loc.shape
    return (
        loc.new_empty(samples, rows, dim),
        loc.new_empty(samples, rows, dtype=torch.float64),
    )


@_op_backward.register_fake
def _(
    grad: Tensor, grad_t: Tensor, loc: Tensor, concentration: Tensor, x: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(loc, memory_format=contiguous),
        torch.empty_like(concentration, memory_format=contiguous),
    )


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], *output)


def _op_vjp(ctx: Any, grad: Tensor, grad_t: Tensor) -> tuple[Tensor | None, ...]:
    by_loc, by_concentration = torch.ops.lipvae.vmf_backward(grad, grad_t, *ctx.saved_tensors)
    return by_loc, by_concentration, None, None, None, None


_op.register_autograd(_op_vjp, setup_context=_op_setup)


class _Vmf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        concentration: Tensor,
        samples: int,
        seed: Tensor,
        start: int,
        shared: bool,
    ) -> tuple[Tensor, Tensor]:
        x, t = forward(loc, concentration, samples, seed, start, shared)
        ctx.requested = requested()
        ctx.save_for_backward(loc, concentration, x, t)
        ctx.set_materialize_grads(False)  # no zeros for t, which few need
        return x, t

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor | None, grad_t: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(saved[2])
        return *backward(grad, grad_t, *saved), None, None, None, None


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A seed int64 [1] from a generator, or from torch's default one; no host round trip."""
    where = device if generator is None else generator.device
    pinned = device.type == "cuda" and where.type == "cpu"
    seed = torch.randint(
        2**63 - 1, (1,), generator=generator, device=where, dtype=torch.int64, pin_memory=pinned
    )
    return seed.to(device, non_blocking=pinned)


def vmf(
    loc: Tensor,
    concentration: Tensor,
    samples: int,
    seed: Tensor | int | None = None,
    start: int = 0,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Samples of vMF(loc[row], concentration[row]), with their gradient.

    Args:
        loc: [rows, m], m >= 2; only its direction counts, and its gradient is orthogonal to it.
        concentration: [rows], >= 0.
        samples: S.
        seed: an int, an int64 tensor [1] on loc's device, or None for one from torch's generator.
        start: index of the first sample.
        shared: whether all rows use the random numbers of sample s, so that a row's samples don't
            depend on the other rows. The index of sample (s, row) is start + s if so, else
            start + s * rows + row.

    Returns:
        x [S, rows, m], and t = 1 - <loc, x> / |loc|, float64 [S, rows], which keeps the digits
        that a large concentration takes from x. Both are differentiable once.

    Raises:
        NotImplementedError: inside a transform of torch.func, or for a tangent.
    """
    refuse_transforms("samples of vMF", loc, concentration)
    if seed is None:
        seed = draw_seed(loc.device)
    elif isinstance(seed, int):
        seed = torch.tensor([(seed + 2**63) % 2**64 - 2**63], device=loc.device)
    arguments = (loc, concentration, samples, seed, start, shared)
    if compiling():
        return torch.ops.lipvae.vmf(*arguments)
    return _Vmf.apply(*arguments) if needs_grad(loc, concentration) else forward(*arguments)
