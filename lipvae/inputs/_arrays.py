"""NumPy files: .npy memory-mapped, .npz members read as a stream."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from lipvae.inputs._base import Batch, Inputs, InputShape, match_layout, to_images


class NpyInputs(Inputs):
    """A .npy file, memory-mapped: only the rows of a batch are read."""

    def __init__(self, path: Path, input_shape: InputShape | None) -> None:
        try:
            self._array = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # damaged headers raise many types
            raise ValueError(f"{path} cannot be read as a .npy array: {error}") from error
        super().__init__(
            str(path),
            _length(str(path), self._array.shape),
            match_layout(str(path), self._array.shape, input_shape),
        )

    def read(self, start: int, stop: int) -> Batch:
        rows = self._array[start:stop]
        ids = [str(i) for i in range(start, stop)]
        return Batch(ids, to_images(self.name, rows, self.shape, start))


class NpzInputs(Inputs):
    """An array inside a .npz file, compressed or not, decompressed as the batches are read."""

    def __init__(self, path: Path, key: str | None, input_shape: InputShape | None) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # damaged archives raise many types
            raise ValueError(f"{path} cannot be read as a .npz file: {error}") from error
        self._member = _choose(path, self._archive, key)
        name = f"{path}:{self._member.removesuffix('.npy')}"
        try:
            with self._archive.open(self._member) as stream:
                shape, fortran, self._dtype = _header(stream)
        except Exception as error:  # damaged, encrypted, or of a compression that Python lacks
            raise ValueError(f"{name} cannot be read as an array: {error}") from error
        if self._dtype.hasobject:
            raise ValueError(f"{name} must be uint8 or floating point, got Python objects")
        if fortran and len(shape) > 1:
            raise ValueError(
                f"{name} is in Fortran order, whose rows cannot be streamed; save it after "
                "numpy.ascontiguousarray"
            )
        super().__init__(name, _length(name, shape), match_layout(name, shape, input_shape))
        self._row_shape = shape[1:]
        self._stream: IO[bytes] | None = None
        self._position = 0

    def read(self, start: int, stop: int) -> Batch:
        row_bytes = self._dtype.itemsize * math.prod(self._row_shape)
        try:
            if self._stream is None or start != self._position:
                self._rewind(start)
            assert self._stream is not None
            raw = self._stream.read((stop - start) * row_bytes)
        except MemoryError:
            raise
        except Exception as error:  # each way to compress has errors of its own
            raise ValueError(f"{self.name} is damaged: {error}") from error
        if len(raw) != (stop - start) * row_bytes:
            raise ValueError(f"{self.name} is truncated: it ends before image {stop - 1}")
        self._position = stop
        rows = np.frombuffer(raw, self._dtype).reshape(-1, *self._row_shape)
        ids = [str(i) for i in range(start, stop)]
        return Batch(ids, to_images(self.name, rows, self.shape, start))

    def _rewind(self, start: int) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = self._archive.open(self._member)
        _header(self._stream)
        row_bytes = self._dtype.itemsize * math.prod(self._row_shape)
        self._stream.seek(start * row_bytes, 1)
        self._position = start


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _choose(path: Path, archive: zipfile.ZipFile, key: str | None) -> str:
    keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if key is None and len(keys) > 1:
        key = next((usual for usual in ("x", "images", "data") if usual in keys), None)
    elif key is None and keys:
        key = keys[0]
    if key is None or key not in keys:
        found = ", ".join(keys) or "none"
        wanted = "several arrays: choose one" if key is None and keys else f"no array {key!r}"
        raise ValueError(f"{path} holds {wanted}, as in {path.name}:KEY (it has: {found})")
    return f"{key}.npy"


def _length(name: str, shape: tuple[int, ...]) -> int:
    if not shape:
        raise ValueError(f"{name} must hold images, got a single number")
    if min(shape) < 0:
        raise ValueError(f"{name} has a damaged header: its shape is {shape}")
    return shape[0]
