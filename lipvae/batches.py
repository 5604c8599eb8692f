"""Images to train on: checked, split, and cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipvae._validate import check_unit_interval, describe
from lipvae.data import ImageSet
from lipvae.models import VAE

Images = Tensor | ImageSet | npt.NDArray[Any]


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of range(n)."""
    return (slice(start, start + size) for start in range(0, n, size))


def generator(seed: int, stream: int) -> torch.Generator:
    """A CPU generator of its own for each purpose; torch uses 32 bits of a seed."""
    word = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
    return torch.Generator().manual_seed(word)


def as_input(images: Tensor, like: Tensor) -> Tensor:
    """A batch as the model takes it: 8-bit pixels over 255, in the dtype of `like`."""
    return images.to(like.dtype).div_(255) if images.dtype == torch.uint8 else images


def checked(name: str, model: VAE, data: Images) -> Tensor:
    """[N, C, H, W], uint8 or of the model's dtype."""
    if isinstance(data, ImageSet):
        data = data.images
    if isinstance(data, np.ndarray):
        data = torch.tensor(data)
    if not isinstance(data, Tensor):
        raise TypeError(f"{name} must be a tensor, an array or an ImageSet, got {describe(data)}")
    if tuple(data.shape[1:]) != model.input_shape or not len(data):
        expected = ", ".join(map(str, model.input_shape))
        raise ValueError(
            f"{name} must have shape [N, {expected}] with N >= 1, got {describe(data)}"
        )
    if data.dtype == torch.uint8:
        return data.detach()
    if not data.dtype.is_floating_point:
        raise TypeError(f"{name} must be uint8 or floating point, got {describe(data)}")
    check_unit_interval(name, data)
    return data.detach().to(next(model.parameters()).dtype)


def split(
    model: VAE, data: Images, validation: float | Images, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Training and validation images: held out by a permutation that depends on the seed."""
    images = checked("data", model, data)
    if isinstance(validation, bool) or not isinstance(validation, int | float):
        return images, checked("validation", model, validation)
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be in [0, 1), or images, got {validation!r}")
    held_out = round(len(images) * validation)
    if held_out == len(images):
        raise ValueError(f"validation={validation!r} leaves no image of {len(images)} to train on")
    if not held_out:
        return images, None
    order = torch.randperm(len(images), generator=generator(seed, 0), device="cpu").to(
        images.device
    )
    return images[order[held_out:]], images[order[:held_out]]
