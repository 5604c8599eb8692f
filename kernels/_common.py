"""What the launchers share: checks of arguments, launch options and the precision of products."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae._alignment import aligned

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Contraction of a product and a sum into one operation is asked for in every launch, because the
# default changes between Triton releases and the kernels' figures depend on it.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b, accumulated in float32."""
    if INTERPRETED:  # its product of bfloat16 operands is wrong; products of halves fit float32
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def multiple(length, OF: tl.constexpr):
    """The length of a row, which from here on the compiler knows to be a multiple of `OF`.

    Triton by itself asks only whether a number divides by 16, and gives up wide and asynchronous
    loads of a matrix whose rows do not.
    """
    return length // OF * OF


# Whether `triton.jit` makes interpreted functions in this process: fixed when Triton is imported.
INTERPRETED = tl.constexpr(not isinstance(dot, triton.JITFunction))


def check_operand(name: str, value: object, dim: int | None = None) -> Tensor:
    """Requires a float32, float16 or bfloat16 tensor where kernels run; returns it aligned."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {value.dtype}")
    return _placed(name, value, dim)


def check_doubles(name: str, value: object, dim: int | None = None) -> Tensor:
    """Requires a float64 tensor where kernels run; returns it aligned."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype != torch.float64:
        raise TypeError(f"{name} must be float64, got {value.dtype}")
    return _placed(name, value, dim)


def _placed(name: str, value: Tensor, dim: int | None) -> Tensor:
    if not value.is_cuda and not INTERPRETED.value:
        raise ValueError(f"{name} must be on a CUDA or ROCm device, got {value.device}")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimensions, got shape {tuple(value.shape)}")
    return aligned(value)


def check_companion(
    name: str, value: object, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> Tensor:
    """Requires a tensor of this shape on `like`'s device, in `dtype` if given; aligned."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {value.device}")
    return aligned(value)


def result(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype, written: bool) -> Tensor:
    """What a kernel will have written whole; zeros, which take a launch, only if none runs."""
    make = like.new_empty if written else like.new_zeros
    return make(shape, dtype=dtype)


def cdiv(numerator: int, denominator: int) -> int:
    """Rounded up; Triton's own, called by the host, takes microseconds."""
    return -(-numerator // denominator)


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below a number >= 1."""
    return 1 << (number - 1).bit_length()


def alignment(length: int, dtype: torch.dtype) -> int:
    """The largest power of two, up to the entries of 16 bytes, that divides a row's length."""
    return math.gcd(length, 16 // dtype.itemsize)


def padded_length(length: int, dtype: torch.dtype) -> int:
    """The length of rows that a matrix product takes: multiples of 8 bytes, else whole 16 bytes.

    Others are copied asynchronously in pieces of 4 bytes, with which some tiles spill, or not so.
    """
    if alignment(length, dtype) * dtype.itemsize >= 8:
        return length
    entries = 16 // dtype.itemsize
    return cdiv(length, entries) * entries


def padded(value: Tensor, *shape: int) -> Tensor:
    """The tensor with zeros at its ends up to the shape; itself if it has it."""
    if tuple(value.shape) == shape:
        return value
    ends = [(0, size - have) for size, have in zip(shape, value.shape, strict=True)]
    return torch.nn.functional.pad(value, [n for pair in reversed(ends) for n in pair])


def check_radius(radius: float) -> float:
    """Requires a finite number above zero."""
    if isinstance(radius, bool) or not isinstance(radius, int | float):
        raise TypeError(f"radius must be a number, got {type(radius).__name__}")
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius must be positive and finite, got {radius!r}")
    return float(radius)


def on_device(value: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's device the current one: Triton launches on the current device."""
    return torch.cuda.device(value.device) if value.is_cuda else contextlib.nullcontext()
