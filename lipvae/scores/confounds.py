"""Scores without a model: what the simplest statistics of an image already tell.

A pair of data sets that these separate says little of a model that separates it too. Their sign
is a convention: simple, dark images count as outliers, since these are what likelihoods miss. An
AUROC far below one half is as telling as one far above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipvae.scores._score import Score

LEVELS = 256


def to_levels(images: Tensor) -> Tensor:
    """The nearest of 256 grey levels, uint8: images in [0, 1] as they are stored."""
    return (images * (LEVELS - 1)).round().to(torch.uint8)


def pixel_entropy(images: Tensor) -> Tensor:
    """Negated Shannon entropy of the image's histogram of 256 levels, in bits.

    Args:
        images: [B, C, H, W] in [0, 1]; the levels of all channels enter one histogram.

    Returns:
        float64 [B], in [-8, 0].

    Source: Shannon 1948.

    Example:
        >>> pixel_entropy(torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2))
        tensor([-1.], dtype=torch.float64)
    """
    levels = to_levels(images).flatten(1).long()
    offset = LEVELS * torch.arange(len(levels), device=levels.device).unsqueeze(1)
    counts = torch.bincount((levels + offset).flatten(), minlength=LEVELS * len(levels))
    share = counts.view(-1, LEVELS).double() / levels.shape[1]
    return torch.special.xlogy(share, share).sum(1) / math.log(2)


def pixel_mean(images: Tensor) -> Tensor:
    """Negated mean of the pixels: [B, C, H, W] in [0, 1] -> float64 [B].

    Example:
        >>> pixel_mean(torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2))
        tensor([-0.5000], dtype=torch.float64)
    """
    return -images.double().mean((1, 2, 3))


def nonzero_pixels(images: Tensor) -> Tensor:
    """Negated count of pixel values above zero: [B, C, H, W] -> float64 [B].

    Example:
        >>> nonzero_pixels(torch.tensor([0.0, 0.5, 1.0, 1.0]).view(1, 1, 2, 2))
        tensor([-3.], dtype=torch.float64)
    """
    return -(images > 0).sum((1, 2, 3)).double()


SCORES = (
    Score("pixel_entropy", "Pixel entropy", pixel_entropy, "inlier", source="images"),
    Score("pixel_mean", "Pixel mean", pixel_mean, "inlier", source="images"),
    Score("nonzero_pixels", "Non-zero pixels", nonzero_pixels, "inlier", source="images"),
)
