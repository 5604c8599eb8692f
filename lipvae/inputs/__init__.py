"""Images from files and data sets, read in batches: nothing larger than a batch is in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import torch

from lipvae import data
from lipvae.data.registry import Split
from lipvae.inputs._arrays import NpyInputs, NpzInputs
from lipvae.inputs._base import (
    Batch,
    Inputs,
    InputShape,
    UnreadableError,
    match_layout,
    printable,
)
from lipvae.inputs._images import EXTENSIONS, FolderInputs

__all__ = ["Batch", "Inputs", "UnreadableError", "open_inputs", "printable", "read_all"]


class _SetInputs(Inputs):
    """A data set by name."""

    def __init__(self, name: str, images: data.ImageSet) -> None:
        super().__init__(name, len(images), images.shape)
        self._images = images

    def read(self, start: int, stop: int) -> Batch:
        ids = [str(i) for i in range(start, stop)]
        return Batch(ids, self._images.take(slice(start, stop)).float())


def open_inputs(
    spec: str | os.PathLike[str],
    input_shape: InputShape | None = None,
    *,
    split: str = "test",
    resize: bool = False,
    skip_unreadable: bool = False,
) -> Inputs:
    """Opens images for reading in batches.

    Args:
        spec: a ``.npy`` file; a ``.npz`` file, or ``FILE.npz:KEY`` where it holds several arrays;
            an image file or a folder of images, searched through; or the name of a data set,
            ``NAME`` or ``NAME:SPLIT``. A path wins over a name.
        input_shape: (C, H, W) that the images must have. Arrays may be [N, C, H, W], [N, H, W, C],
            [N, H, W] where C is 1, or [N, C * H * W]. None takes the shape that the input has.
        split: the split of a data set that is named without one.
        resize: for image files: scale to the shape where the size differs, instead of an error.
            Without `input_shape` that is the shape of the first one.
        skip_unreadable: for image files: leave out those, and folders, that cannot be read as such
            images, instead of an error; `Inputs.skipped` says which.

    Returns:
        Inputs that yield float32 [B, C, H, W] in [0, 1]: 8-bit values over 255, floating-point
        values as they are.

    Raises:
        FileNotFoundError: there is no such file, folder or data set.
        ValueError: the content cannot be read as images, or not as ones of this shape, 8 bits a
            channel; or it is neither a file nor a folder, but a pipe, say.
        lipvae.data.DataUnavailableError: no source has the data set.

    Example:
        >>> digits = open_inputs("digits:test")
        >>> len(digits), digits.shape
        (445, (1, 8, 8))
        >>> [batch.images.shape[0] for batch in digits.batches(200)]
        [200, 200, 45]
    """
    text = os.fspath(spec)
    if not text:
        raise ValueError("images must be a file, a folder or a data set, got an empty name")
    path = _expanded(text)
    if path.is_dir():
        return FolderInputs(path, input_shape, resize=resize, skip_unreadable=skip_unreadable)
    stem, _, key = text.rpartition(":")
    if path.is_file():
        return _open_file(path, None, input_shape, resize, skip_unreadable)
    if stem and _expanded(stem).is_file():
        return _open_file(_expanded(stem), key, input_shape, resize, skip_unreadable)
    if path.exists():
        raise ValueError(f"{text!r} must be a file or a folder, got a pipe, socket or device")
    name, _, chosen = text.partition(":")
    if name in data.NAMES:
        return _open_set(name, chosen or split, input_shape)
    known = ", ".join(data.NAMES)
    raise FileNotFoundError(f"{text!r} is neither a file or folder nor a data set ({known})")


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name, without such a user
        return Path(text)


def _open_file(
    path: Path,
    key: str | None,
    input_shape: InputShape | None,
    resize: bool,
    skip_unreadable: bool,
) -> Inputs:
    kind = path.suffix.lower()
    if key is not None and kind != ".npz":
        raise ValueError(f"{path}: only a .npz file takes a key, got {key!r}")
    if kind == ".npy":
        return NpyInputs(path, input_shape)
    if kind == ".npz":
        return NpzInputs(path, key, input_shape)
    if kind in EXTENSIONS:
        return FolderInputs(path, input_shape, resize=resize, skip_unreadable=skip_unreadable)
    known = ", ".join((".npy", ".npz", *EXTENSIONS))
    raise ValueError(f"{path}: the file must be one of {known}, got {kind or 'no extension'!r}")


def _open_set(name: str, split: str, input_shape: InputShape | None) -> Inputs:
    if split not in ("train", "test"):
        raise ValueError(f"the split of {name} must be train or test, got {split!r}")
    made = name in ("photo-patches", "near-black", "near-white")
    images = data.load(name, cast(Split, split), shape=input_shape if made else None)
    match_layout(f"{name}:{split}", tuple(images.images.shape), input_shape)
    return _SetInputs(f"{name}:{split}", images)


def read_all(inputs: Inputs, batch_size: int = 1024) -> torch.Tensor:
    """All images in memory, float32 [N, C, H, W]."""
    return torch.cat([batch.images for batch in inputs.batches(batch_size)])
