"""Checks of arguments. Every message names the argument and what it got."""

from __future__ import annotations

import torch
from torch import Tensor

_CPU_DTYPES = (torch.float32, torch.float64)
_FLOATS = (*_CPU_DTYPES, torch.float16, torch.bfloat16)


def describe(value: object) -> str:
    """A short description of a value for an error message."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{value!r} ({type(value).__name__})"


def check_tensor(name: str, value: object, *, dim: int | None = None, min_dim: int = 0) -> Tensor:
    """Requires a floating-point tensor with `dim` dimensions (or at least `min_dim`)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(value)}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {describe(value)}")
    if value.is_cpu and value.dtype not in _CPU_DTYPES:
        raise TypeError(f"{name} must be float32 or float64 on a CPU, got {describe(value)}")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimensions, got {describe(value)}")
    if value.dim() < min_dim:
        raise ValueError(f"{name} must have at least {min_dim} dimensions, got {describe(value)}")
    return value


def check_like(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Requires the dtype and the device of another tensor."""
    if value.dtype != other.dtype or value.device != other.device:
        raise ValueError(
            f"{name} must have the dtype and device of {other_name} ({other.dtype} on "
            f"{other.device}), got {describe(value)}"
        )


def fits_rows(x: object, weight: Tensor) -> bool:
    """Whether x is [..., in] of the type and device of a weight [out, in], in few steps.

    The checks above say what is wrong. They take 50 us where a product has just filled the cache.
    """
    return (
        isinstance(x, Tensor)
        and (dtype := x.dtype) == weight.dtype
        and dtype in (_CPU_DTYPES if x.is_cpu else _FLOATS)
        and x.device == weight.device
        and x.shape[-1:] == weight.shape[1:]
    )


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Requires an exact shape."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {describe(value)}")


def check_positive(name: str, value: object) -> float:
    """Requires a finite number above zero."""
    # A tuple of types: torch.compile of torch 2.7 does not trace a union.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)


def check_count(name: str, value: object, minimum: int = 1) -> int:
    """Requires an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {describe(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def check_group_size(group_size: object, length: int) -> int:
    """Requires a group size that divides `length`."""
    size = check_count("group_size", group_size)
    if length % size:
        raise ValueError(
            f"group_size must divide the length of the sorted dimension, got {size} for {length}"
        )
    return size


def check_finite(name: str, value: Tensor) -> None:
    """Requires values that are neither NaN nor infinite."""
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values")


def check_unit_interval(name: str, value: Tensor) -> None:
    """Requires pixels in [0, 1]."""
    if value.numel() == 0:
        return
    # One wait for a GPU. A NaN makes both of them NaN.
    low, high = torch.stack(torch.aminmax(value.detach())).tolist()
    if not (low >= 0 and high <= 1):
        check_finite(name, value)
        hint = ""
        if low > -0.01 and high < 1.01:
            hint = "; clamp(0, 1) what a resize has rounded"
        elif low >= 0 and high <= 255:
            hint = "; divide 8-bit pixels by 255"
        raise ValueError(f"{name} must lie in [0, 1], got [{low:.9g}, {high:.9g}]{hint}")
