"""Sets that are made here, from nothing or from what scikit-learn carries: no download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from lipvae._validate import check_count
from lipvae.data.images import ImageSet


def near_black(n: int, shape: Sequence[int], seed: int = 0, *, amplitude: float = 0.05) -> ImageSet:
    """Return near-black noise: every channel of every pixel uniform on [0, amplitude].

    One of the two forged outlier sets of Glazunov & Zarras (UAI 2023); the default amplitude is
    this library's choice. Values are whole 8-bit levels, uniform on 0..⌊255·amplitude⌋.

    Args:
        n: number of images, at least 1.
        shape: (C, H, W).
        seed: a seed gives the same images on every machine.
        amplitude: largest value, in (0, 1), on the scale where white is 1; at least one level.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import lipvae.data
        >>> float(lipvae.data.near_black(4, (1, 8, 8), seed=0).float().max()) <= 0.05
        True
    """
    levels = _noise(n, shape, seed, amplitude)
    return ImageSet(torch.from_numpy(levels), None, "near-black", "test", f"made, seed {seed}")


def near_white(n: int, shape: Sequence[int], seed: int = 0, *, amplitude: float = 0.05) -> ImageSet:
    """Return near-white noise: every channel of every pixel uniform on [1 − amplitude, 1].

    The mirror image of `near_black`, of which see the arguments and errors; the same seed gives
    exactly one minus the same noise.

    Example:
        >>> import lipvae.data
        >>> float(lipvae.data.near_white(4, (3, 32, 32), seed=0).float().min()) >= 0.95
        True
    """
    levels = 255 - _noise(n, shape, seed, amplitude)
    return ImageSet(torch.from_numpy(levels), None, "near-white", "test", f"made, seed {seed}")


def _noise(n: int, shape: Sequence[int], seed: int, amplitude: float) -> npt.NDArray[np.uint8]:
    check_count("n", n)
    check_count("seed", seed, minimum=0)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (C, H, W) with positive sizes, got {tuple(shape)}")
    top = int(255 * amplitude) if 0 < amplitude < 1 else 0
    if top < 1:
        raise ValueError(f"amplitude must be from 1/255 to below 1, got {amplitude!r}")
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.integers(0, top, (n, *shape), dtype=np.uint8, endpoint=True)


def photo_patches(
    size: int | tuple[int, int] = 8, n: int = 1000, seed: int = 0, *, channels: int = 1
) -> ImageSet:
    """Return patches of scikit-learn's two sample photographs (``china.jpg``, ``flower.jpg``).

    A patch is cut from either photograph, each pixel position equally likely, patches may overlap.
    Grey is the luma 0.299 R + 0.587 G + 0.114 B, rounded.

    Args:
        size: side of a square patch, or (H, W); at most 427×640 pixels.
        n: number of patches, at least 1.
        seed: a seed gives the same patches on every machine.
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import lipvae.data
        >>> lipvae.data.photo_patches(8, 16, seed=0).images.shape
        torch.Size([16, 1, 8, 8])
    """
    return _patches(size, n, seed, channels, slice(None), "test")


def photo_patches_split(split: str, size: int | tuple[int, int], n: int, channels: int) -> ImageSet:
    """Return patches of the photographs' left halves (train) or right halves (test).

    The halves share no pixel, so that the splits don't either.
    """
    half = slice(None, 320) if split == "train" else slice(320, None)
    return _patches(size, n, 0 if split == "train" else 1, channels, half, split)


def _patches(
    size: int | tuple[int, int], n: int, seed: int, channels: int, columns: slice, split: str
) -> ImageSet:
    from sklearn.datasets import load_sample_images

    check_count("n", n)
    check_count("seed", seed, minimum=0)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
    photos = np.stack(load_sample_images().images)[:, :, columns]  # [2, 427, 640, 3]
    if channels == 1:
        photos = np.rint(photos @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
    height, width = (size, size) if isinstance(size, int) else size
    rows, cols = photos.shape[1] - height + 1, photos.shape[2] - width + 1
    if min(height, width, rows, cols) < 1:
        raise ValueError(
            f"size must be at least 1 and fit into {photos.shape[1]} rows and {photos.shape[2]} "
            f"columns, got {size}"
        )
    generator = np.random.Generator(np.random.Philox(seed))
    index = generator.integers(0, 2 * rows * cols, n)
    photo, row, col = np.unravel_index(index, (2, rows, cols))
    windows = np.lib.stride_tricks.sliding_window_view(photos, (height, width), axis=(1, 2))
    images = np.ascontiguousarray(windows[photo, row, col])  # [n, C, H, W]
    return ImageSet(
        torch.from_numpy(images), None, "photo-patches", split, f"scikit-learn, seed {seed}"
    )


def digits(split: str) -> ImageSet:
    """Return scikit-learn's 1797 handwritten digits, 8×8, values 0..16, scaled to 0..255.

    Level v becomes round(255 v / 16); the 17 results are distinct, so round(16 u / 255) gives v
    back: nothing is lost. Each class's every fourth image, in the file's order, is the test split;
    the file goes through its writers in turn, so both splits hold all of them.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (1998), the test part.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    target = bunch.target.astype(np.int64)
    rank = np.empty_like(target)  # position of an image among those of its class
    for c in range(10):
        rank[target == c] = np.arange(np.count_nonzero(target == c))
    chosen = (rank % 4 == 3) == (split == "test")
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSet(
        torch.from_numpy(images), torch.from_numpy(target[chosen]), "digits", split, "scikit-learn"
    )
