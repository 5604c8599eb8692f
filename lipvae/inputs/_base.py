"""What every kind of input has in common: shape, batches, and the check of pixels."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipvae._validate import check_count

InputShape = tuple[int, int, int]


class UnreadableError(ValueError):
    """An image, or every image of an input, cannot be read as one that the model takes."""


def printable(name: str | os.PathLike[str]) -> str:
    r"""A file's name as text: bytes that are not UTF-8 are escaped, as in ``bad\xff.png``."""
    # Python reads such a byte b as the surrogate 0xdc00 + b.
    return re.sub("[\udc80-\udcff]", lambda byte: rf"\x{ord(byte[0]) - 0xDC00:x}", os.fspath(name))


@dataclass(frozen=True)
class Batch:
    """Some images.

    Attributes:
        ids: what each image is called: its index, or its file's name. Bytes of a name that are not
            UTF-8 are escaped.
        images: float32 [B, C, H, W] in [0, 1].
    """

    ids: list[str]
    images: Tensor


class Inputs(ABC):
    """Images that are read in batches.

    Attributes:
        name: where they come from, for messages and tables, escaped like ids.
        shape: (C, H, W).
        skipped: why each image was left out that could not be read, as far as reading has come.
    """

    def __init__(self, name: str, count: int, shape: InputShape) -> None:
        self.name = printable(name)
        if count == 0:
            raise ValueError(f"{self.name} holds no images")
        self.shape = shape
        self.skipped: list[str] = []
        self._passed_over: list[str] = []  # before any image was read
        self._count = count

    def __len__(self) -> int:
        return self._count

    def limit(self, count: int | None) -> None:
        """Keeps the first `count` images; None keeps all."""
        if count is not None:
            self._count = min(self._count, check_count("count", count))

    @abstractmethod
    def read(self, start: int, stop: int) -> Batch:
        """Images start to stop - 1, fewer where some are skipped. Batches are read in order."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields the images in order, up to `size` at a time.

        Raises:
            UnreadableError: at the end, if none could be read.
        """
        check_count("size", size)
        some = False
        self.skipped[:] = self._passed_over
        for start in range(0, self._count, size):
            batch = self.read(start, min(start + size, self._count))
            if batch.ids:
                some = True
                yield batch
        if not some:
            raise UnreadableError(f"{self.name} holds no image that can be read: {self.skipped[0]}")


def match_layout(name: str, shape: tuple[int, ...], wanted: InputShape | None) -> InputShape:
    """(C, H, W) of an array's images.

    Args:
        name: for messages.
        shape: of the array, images first.
        wanted: (C, H, W) that the images must have, or None.

    Raises:
        ValueError: if the array cannot hold such images.
    """
    rest = shape[1:]
    if wanted is None:
        if len(rest) == 2:
            return (1, *rest)
        if len(rest) == 3 and rest[0] in (1, 3):
            return rest
        if len(rest) == 3 and rest[2] in (1, 3):
            return (rest[2], *rest[:2])
        raise ValueError(
            f"{name} must be [N, H, W], [N, C, H, W] or [N, H, W, C] with 1 or 3 channels, got "
            f"shape {shape}"
        )
    channels, height, width = wanted
    fits = {wanted, (height, width, channels), (math.prod(wanted),)}
    if channels == 1:
        fits.add((height, width))
    if rest not in fits:
        raise ValueError(
            f"{name} must hold images of shape {wanted} (channels, height, width), got an array of "
            f"shape {shape}"
        )
    return wanted


def to_images(name: str, values: npt.NDArray[Any], shape: InputShape, start: int) -> Tensor:
    """Rows of an array as float32 [B, C, H, W] in [0, 1].

    Args:
        name: for messages.
        values: [B, ...] in one of the layouts that `match_layout` accepts; uint8 or floating.
        shape: (C, H, W).
        start: index of the first row, for messages.

    Raises:
        ValueError: for another dtype, NaN or infinite values, or values outside [0, 1].
    """
    channels, height, width = shape
    if values.dtype == np.uint8:
        pixels = torch.from_numpy(values.astype(np.float32)).div_(255)
    elif values.dtype.kind == "f" and values.dtype.itemsize <= 8:
        _check_range(name, values, start)
        pixels = torch.from_numpy(values.astype(np.float32))
    else:
        raise ValueError(f"{name} must be uint8, or floating point in [0, 1]; got {values.dtype}")
    last = (height, width, channels)
    if values.shape[1:] == last and last != shape:
        pixels = pixels.permute(0, 3, 1, 2)
    return pixels.reshape(-1, *shape).contiguous()


def _check_range(name: str, values: npt.NDArray[Any], start: int) -> None:
    flat = values.reshape(len(values), -1)
    good = ((flat >= 0) & (flat <= 1)).all(1)
    if good.all():
        return
    row = int(np.argmin(good))
    low, high = flat[row].min(), flat[row].max()
    if np.isfinite(low) and np.isfinite(high):
        hint = "; store 8-bit pixels as uint8, or divide them by 255" if 1 < high <= 255 else ""
        raise ValueError(
            f"{name} must lie in [0, 1], got [{low:g}, {high:g}] in image {start + row}{hint}"
        )
    raise ValueError(f"{name} must be finite, got NaN or infinity in image {start + row}")
