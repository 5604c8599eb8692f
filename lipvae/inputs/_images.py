"""Image files and folders of them."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from lipvae.inputs._base import Batch, Inputs, InputShape, UnreadableError, printable

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

# Modes of 8 bits a channel at most. Others (grey of 16 bits, floating point) would be clipped.
_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")
_GREY = ("1", "L", "LA")


class FolderInputs(Inputs):
    """Every image under a folder, in the order of the names, or a single image file.

    Links to folders are followed. Grey models see the luma of a colour image, colour models a grey
    image three times. Without a model the images are colour ones if any of them is. A picture that
    a camera stored turned, as its EXIF orientation says, is turned back.
    """

    def __init__(
        self,
        path: Path,
        input_shape: InputShape | None,
        *,
        resize: bool,
        skip_unreadable: bool = False,
    ) -> None:
        if path.is_dir():
            self._root = path
            unreadable: list[str] = []
            self._files = list(_images_under(path, unreadable))
            if unreadable and not (skip_unreadable and self._files):
                raise UnreadableError(unreadable[0])
            if not self._files:
                raise ValueError(f"{path} holds no images ({', '.join(EXTENSIONS)})")
        else:
            self._root, self._files, unreadable = path.parent, [path], []
        if input_shape is None:
            input_shape = self._shape_of_files(skip_unreadable)
        if input_shape[0] not in (1, 3):
            raise ValueError(
                f"{path}: image files have 1 or 3 channels, the model takes {input_shape[0]}"
            )
        super().__init__(str(path), len(self._files), input_shape)
        self._resize = resize
        self._skip_unreadable = skip_unreadable
        self._passed_over = unreadable

    def _shape_of_files(self, skip_unreadable: bool) -> InputShape:
        size: list[int] = []
        colour = False
        first: UnreadableError | None = None
        for file in self._files:
            try:
                if not size:
                    _, *size = _read(file, None, resize=False).shape
                colour = colour or _is_colour(file)
            except UnreadableError as error:
                if not skip_unreadable:
                    raise
                first = first or error
        if not size:
            raise UnreadableError(f"{self._root} holds no image that can be read: {first}")
        return 3 if colour else 1, size[0], size[1]

    def read(self, start: int, stop: int) -> Batch:
        files = self._files[start:stop]
        found = []
        ids = []
        # Decoding leaves Python's lock to others.
        with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
            for file, image in zip(files, pool.map(self._attempt, files), strict=True):
                if isinstance(image, UnreadableError):
                    if not self._skip_unreadable:
                        pool.shutdown(cancel_futures=True)
                        raise image
                    self.skipped.append(str(image))
                else:
                    found.append(image)
                    ids.append(printable(file.relative_to(self._root).as_posix()))
        pixels = np.stack(found) if found else np.empty((0, *self.shape), np.uint8)
        return Batch(ids, torch.from_numpy(pixels).float().div_(255))

    def _attempt(self, file: Path) -> np.ndarray | UnreadableError:
        try:
            return _read(file, self.shape, resize=self._resize)
        except UnreadableError as error:
            return error


def _images_under(
    folder: Path, unreadable: list[str], above: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """Image files, sorted folder by folder; a link to a folder that it lies in is passed over.

    Why a folder cannot be searched, or what is in it not be told, goes to `unreadable`.
    """
    try:
        real = folder.resolve()
        entries = [] if real in above else sorted(folder.iterdir())
    except OSError as error:
        unreadable.append(f"{folder} cannot be searched: {error.strerror or error}")
        return
    for entry in entries:
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            unreadable.append(f"{entry} cannot be read: {error.strerror or error}")
            continue
        if is_folder:
            yield from _images_under(entry, unreadable, (*above, real))
        elif entry.suffix.lower() in EXTENSIONS:
            yield entry


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[ImageFile.ImageFile]:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for a writer
            raise UnreadableError(f"{file} must be a file, got a pipe, socket or device")
        with Image.open(file) as stored:
            yield stored
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # damaged files raise many types, TypeError among them
        reason = str(error) or type(error).__name__
        raise UnreadableError(f"{file} cannot be read as an image: {reason}") from error


def _read(file: Path, shape: InputShape | None, *, resize: bool) -> np.ndarray:
    """uint8 [C, H, W]."""
    with _opened(file) as stored:
        if stored.mode not in _MODES:
            raise UnreadableError(f"{file} must have 8 bits a channel, got mode {stored.mode}")
        if _is_deep(stored):
            raise UnreadableError(
                f"{file} must have 8 bits a channel, got more, of which the lower would be lost; "
                "scale it to 8 bits"
            )
        if _is_transparent(stored):
            raise UnreadableError(f"{file} has transparent pixels; flatten it onto a background")
        frames = getattr(stored, "n_frames", 1)
        if frames > 1 and stored.format in ("TIFF", "WEBP"):
            raise UnreadableError(f"{file} holds {frames} images; store one in a file")
        image = ImageOps.exif_transpose(stored).convert(_mode(stored, shape))
    if shape is not None and image.size != (shape[2], shape[1]):
        if not resize:
            raise UnreadableError(
                f"{file} must be {shape[1]}x{shape[2]} pixels (height x width), got "
                f"{image.height}x{image.width}; resize it, or ask for that (--resize, resize=True)"
            )
        image = image.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _mode(image: Image.Image, shape: InputShape | None) -> str:
    if shape is not None:
        return "L" if shape[0] == 1 else "RGB"
    return "L" if image.mode in _GREY else "RGB"


def _is_colour(file: Path) -> bool:
    with _opened(file) as stored:
        return stored.mode in _MODES and stored.mode not in _GREY


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow cuts the file's channels to 8 bits: it has no mode for colours of 16."""
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8
    for _, _, _, arguments in image.tile:
        raw, *others = arguments if isinstance(arguments, tuple) else (arguments,)
        if re.search(r";16[BLN]$", str(raw)):
            return True
        if image.format == "PPM" and any(isinstance(v, int) and v > 255 for v in others):
            return True
    return False


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        return bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
    return False
