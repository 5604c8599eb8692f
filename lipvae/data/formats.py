"""The file formats of the data sets, from bytes to arrays. Each reader checks what it reads."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lipvae.data.errors import CorruptFileError

Bytes = npt.NDArray[np.uint8]

_IDX_UNSIGNED_BYTE = 0x08
_CIFAR_SIDE = 32
CIFAR_RECORD = 1 + 3 * _CIFAR_SIDE**2


def gunzip(packed: bytes, what: str) -> Bytes:
    """Decompress gzip bytes; `what` names the file in errors."""
    try:
        return np.frombuffer(bytearray(gzip.decompress(packed)), dtype=np.uint8)
    except EOFError as error:
        raise CorruptFileError(f"{what} is truncated: the gzip stream ends early") from error
    except (OSError, zlib.error, struct.error) as error:
        raise CorruptFileError(f"{what} is not a sound gzip file: {error}") from error


def parse_idx(content: Bytes, what: str) -> Bytes:
    """Read an IDX array of unsigned bytes (the format of MNIST).

    The header is two zero bytes, a type code, the number of dimensions, then each dimension as a
    big-endian 32-bit integer; the values follow in C order. The array is a view of `content`.

    Raises:
        CorruptFileError: wrong magic number, or a length that disagrees with the header.
    """
    header = content[:4].tobytes()
    if len(header) < 4 or header[:2] != b"\0\0":
        seen = header.hex() or "nothing"
        raise CorruptFileError(f"{what} is not an IDX file: it starts with {seen}")
    if header[2] != _IDX_UNSIGNED_BYTE:
        raise CorruptFileError(
            f"{what} has IDX type code 0x{header[2]:02x}, expected 0x08 (unsigned bytes)"
        )
    start = 4 + 4 * header[3]
    if content.size < start:
        raise CorruptFileError(f"{what} is truncated inside its header")
    dims = struct.unpack(f">{header[3]}I", content[4:start].tobytes())
    expected = start + int(np.prod(dims, dtype=np.int64))
    if content.size != expected:
        state = "truncated" if content.size < expected else "too long"
        raise CorruptFileError(
            f"{what} is {state}: {content.size} bytes, its header {dims} asks for {expected}"
        )
    return content[start:].reshape(dims)


def parse_cifar(content: Bytes, what: str) -> tuple[Bytes, Bytes]:
    """Read a CIFAR-10 binary batch: records of a label byte and 3×32×32 bytes, planes RGB.

    Returns:
        images [N, 3, 32, 32] and labels [N], views of `content`.
    """
    if content.size == 0 or content.size % CIFAR_RECORD:
        raise CorruptFileError(
            f"{what} has {content.size} bytes, not a multiple of the {CIFAR_RECORD} of a record"
        )
    records = content.reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE), records[:, 0]


def cifar_from_png(png: bytes, labels: npt.NDArray[np.int64], what: str) -> bytes:
    """Rebuild a CIFAR-10 binary batch from a PNG that holds one image a row.

    Args:
        png: an RGB image of height N and width 1024, row i the pixels of image i in row-major
            order.
        labels: [N] class numbers.
        what: name of the file, for errors.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise CorruptFileError(f"{what} is not a sound PNG file: {error}") from error
    expected = (len(labels), _CIFAR_SIDE**2, 3)
    if mode != "RGB" or pixels.shape != expected:
        raise CorruptFileError(
            f"{what} is a {mode} picture of shape {pixels.shape}, expected RGB {expected}"
        )
    records = np.empty((len(labels), CIFAR_RECORD), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = pixels.transpose(0, 2, 1).reshape(len(labels), -1)
    return records.tobytes()


def parse_labels_json(text: bytes, count: int, what: str) -> npt.NDArray[np.int64]:
    """Read a JSON list of `count` class numbers 0..9."""
    try:
        labels = np.asarray(json.loads(text))
    except ValueError as error:
        raise CorruptFileError(f"{what} is not sound JSON: {error}") from error
    if labels.shape != (count,) or labels.dtype.kind != "i" or labels.min() < 0 or labels.max() > 9:
        raise CorruptFileError(f"{what} is not a list of {count} class numbers from 0 to 9")
    return labels.astype(np.int64)


def parse_svhn(content: Bytes, what: str) -> tuple[Bytes, Bytes]:
    """Read a cropped SVHN file: MATLAB arrays X [H, W, 3, N] and y [N, 1], with 10 for zero.

    Returns:
        images [N, 3, H, W] and labels [N] in 0..9.
    """
    from scipy.io import loadmat

    try:
        arrays = loadmat(io.BytesIO(content.tobytes()), variable_names=["X", "y"])
    except Exception as error:  # damaged files raise many types, from struct.error to TypeError
        raise CorruptFileError(f"{what} is not a sound MATLAB file: {error}") from error
    if not {"X", "y"} <= arrays.keys():
        raise CorruptFileError(f"{what} lacks the arrays X and y")
    pixels, labels = arrays["X"], arrays["y"].reshape(-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2:] != (3, labels.size):
        raise CorruptFileError(
            f"{what} holds X {pixels.dtype} {pixels.shape} and {labels.size} labels, "
            "expected uint8 [H, W, 3, N] and N labels"
        )
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return images, np.where(labels == 10, 0, labels).astype(np.uint8)


def read_unlabelled(path: Path, shape: tuple[int, int, int]) -> tuple[Bytes, Bytes | None]:
    """Read an .npz archive with ``images`` uint8 [N, H, W] and, perhaps, ``labels`` [N].

    Labels that are all 255 mean that there are none.
    """
    try:
        # np.load leaves a file open that it opened itself and cannot read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            images = np.asarray(archive["images"])
            labels = np.asarray(archive["labels"]) if "labels" in archive else None
    except KeyError as error:
        raise CorruptFileError(f"{path} has no array named 'images'") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFileError(f"{path} is not a sound .npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != shape[1:]:
        raise CorruptFileError(
            f"{path} holds images {images.dtype} {images.shape}, expected uint8 [N, {shape[1]}, "
            f"{shape[2]}]"
        )
    if labels is not None and labels.shape != images.shape[:1]:
        raise CorruptFileError(f"{path} holds {len(images)} images but labels {labels.shape}")
    if labels is not None and bool((labels == 255).all()):
        labels = None
    return images[:, None], labels
