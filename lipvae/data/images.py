"""The value that every data set loads as."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipvae._validate import describe


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory, as stored: 8 bits a channel.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None where the set has none.
        name: the data set's name.
        split: ``"train"`` or ``"test"``.
        source: in words, where the images came from.

    Example:
        >>> import lipvae.data
        >>> digits = lipvae.data.load("digits", "test")
        >>> digits.images.shape[1:], digits.float().dtype
        (torch.Size([1, 8, 8]), torch.float32)
        >>> len(digits.select([0, 1])) < len(digits)
        True
    """

    images: Tensor
    labels: Tensor | None
    name: str
    split: str
    source: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {describe(self.images)}")
        labels = self.labels
        if labels is not None and (
            labels.dtype != torch.int64 or labels.shape != self.images.shape[:1]
        ):
            raise ValueError(f"labels must be int64 [{len(self.images)}], got {describe(labels)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def float(self) -> Tensor:
        """Return the images as float32 [N, C, H, W] in [0, 1]: the stored value over 255."""
        return self.images.to(torch.float32).div_(255)

    def take(self, index: Tensor | slice) -> ImageSet:
        """Return the images at `index`: a slice, integer positions or a mask [N]."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)

    def select(self, labels: int | Iterable[int]) -> ImageSet:
        """Return the images whose label is among `labels`, in their order.

        Raises:
            ValueError: the set has no labels, or none of its images has such a label.
        """
        if self.labels is None:
            raise ValueError(f"labels cannot be selected by: {self.name} ({self.split}) has none")
        wanted = [labels] if isinstance(labels, int) else list(labels)
        mask = torch.isin(self.labels, torch.tensor(wanted, dtype=torch.int64))
        if not bool(mask.any()):
            raise ValueError(
                f"labels must be among those of {self.name} ({self.split}), "
                f"{self.labels.unique().tolist()}, got {wanted}"
            )
        return self.take(mask)
