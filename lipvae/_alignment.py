"""Tensors that begin where wide loads can."""

from __future__ import annotations

from torch import Tensor


def aligned(value: Tensor) -> Tensor:
    """The tensor, contiguous and beginning on 16 bytes; a copy where it is not.

    Triton looks at the address: other tensors it loads an entry at a time, and lays sums over them
    out in another way, so that last bits would change with the place of an image in its batch.
    """
    value = value.contiguous()
    return value.clone() if value.data_ptr() % 16 else value
