"""Tensors that begin where wide loads can."""

from __future__ import annotations

from torch import Tensor


def aligned(value: Tensor) -> Tensor:
    """The tensor, contiguous and beginning on 16 bytes; a copy where it is not.

    A GPU's compiler and its libraries look at the address: they would load other tensors an entry
    at a time, and lay their sums out in another way, so that last bits change with the place of an
    image in its batch.
    """
    value = value.contiguous()
    return value.clone() if value.data_ptr() % 16 else value
