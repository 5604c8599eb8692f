"""The images of an experiment: a fixed choice of each test set, grey ones lifted to colour."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn.functional import pad

from lipvae import data
from lipvae.data import DataUnavailableError, ImageSet
from lipvae.data.registry import BUILT_IN, REGISTRY, Split
from lipvae.experiments import subsets

Shape = tuple[int, int, int]

# Of the choice of test images, the same in every experiment.
CHOICE_SEED = 20230616
# Of a set that is made to measure.
MADE_COUNT = 10000


def fits(shape: Shape, into: Shape) -> bool:
    """Whether images of a shape can be lifted to another."""
    return shape[0] in (1, into[0]) and shape[1] <= into[1] and shape[2] <= into[2]


def lift(images: Tensor, shape: Shape) -> Tensor:
    """Images in a larger shape: black borders, grey repeated in each channel.

    Args:
        images: [N, C, H, W].
        shape: (C', H', W') with C' = C, or any C' if C = 1, and H' >= H, W' >= W.

    Returns:
        [N, C', H', W'], the image in the middle (of an odd border, the larger part after it).

    Raises:
        ValueError: if it does not fit.

    Example:
        >>> lift(torch.ones(2, 1, 28, 28), (3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """
    channels, height, width = images.shape[1:]
    extra = shape[1] - height, shape[2] - width
    if not fits((channels, height, width), shape):
        raise ValueError(f"images {tuple(images.shape[1:])} cannot be lifted to shape {shape}")
    top, left = extra[0] // 2, extra[1] // 2
    images = pad(images, (left, extra[1] - left, top, extra[0] - top))
    return images.expand(-1, shape[0], -1, -1).contiguous()


class Images:
    """Loads data sets once each, and says why one cannot be had.

    Args:
        root: folder with data sets, see :func:`lipvae.data.fetch`.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._root = root
        self._loaded: dict[tuple[str, str, Shape | None], ImageSet | DataUnavailableError] = {}

    @staticmethod
    def shape(name: str) -> Shape:
        """(C, H, W) of a data set."""
        name = subsets.whole(name)
        return REGISTRY[name].shape if name in REGISTRY else BUILT_IN[name].shape

    @staticmethod
    def train_count(name: str) -> int:
        """Training images of a data set; of one cut to some classes, about as many."""
        name, classes = subsets.parse(name)
        count = (REGISTRY[name] if name in REGISTRY else BUILT_IN[name]).counts["train"]
        return count * len(classes) // 10 if classes else count

    def count(self, name: str, split: Split) -> int | None:
        """Images of a split; None where it cannot be had."""
        found = self._load(name, split)
        return len(found) if isinstance(found, ImageSet) else None

    def _load(
        self, name: str, split: Split, shape: Shape | None = None
    ) -> ImageSet | DataUnavailableError:
        base, classes = subsets.parse(name)
        if classes:
            return self._cut(name, self._load(base, split), classes)
        made = name in BUILT_IN and not BUILT_IN[name].counts
        key = (name, split, shape if made else None)
        if key not in self._loaded:
            try:
                if made:
                    self._loaded[key] = data.load(name, split, shape=shape, n=MADE_COUNT)
                else:
                    self._loaded[key] = data.load(name, split, root=self._root)
            except DataUnavailableError as error:
                self._loaded[key] = error
        return self._loaded[key]

    def _cut(
        self, name: str, found: ImageSet | DataUnavailableError, classes: tuple[int, ...]
    ) -> ImageSet | DataUnavailableError:
        if isinstance(found, DataUnavailableError):
            return found
        if found.labels is None:
            return DataUnavailableError(name, ["labels"], [], "It comes without labels.")
        key = (name, found.split, None)
        if key not in self._loaded:
            self._loaded[key] = found.select(classes)
        return self._loaded[key]

    def obstacle(self, name: str, split: Split) -> str | None:
        """Why a split cannot be had, in words; None if it can."""
        found = self._load(name, split)
        if isinstance(found, ImageSet):
            return None
        return f"{name} could not be fetched: no source gives {', '.join(found.missing)}"

    def _get(self, name: str, split: Split, shape: Shape | None = None) -> ImageSet:
        found = self._load(name, split, shape)
        if isinstance(found, ImageSet):
            return found
        raise found

    def train(self, name: str) -> ImageSet:
        """A training split.

        Raises:
            DataUnavailableError: if no source has it.
        """
        return self._get(name, "train")

    def test(self, name: str, count: int | None, like: str) -> Tensor:
        """Test images for a model of `like`: float32 [N, C, H, W] in [0, 1].

        Args:
            name: the set, or one cut to some classes: ``mnist-01``.
            count: how many, a random choice that is always the same; None for all in order.
            like: the set whose shape they take.

        Raises:
            DataUnavailableError: if no source has it.
        """
        shape = self.shape(like)
        images = self._get(name, "test", shape).images
        if count is not None and count < len(images):
            order = torch.Generator().manual_seed(CHOICE_SEED)
            images = images[torch.randperm(len(images), generator=order)[:count]]
        return lift(images, shape).float().div_(255)
