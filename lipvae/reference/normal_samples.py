"""Samples of normal posteriors and the ratio of densities in their importance weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal_samples(loc: Tensor, log_variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z = loc + scale * noise, and log p(z) - log q(z | x) for a standard normal p, equation (5).

    Args:
        loc: [B, m], means of q(z | x).
        log_variance: [B, m].
        noise: [K, m], standard normal, the same for every x.

    Returns:
        z [K, B, m] and the logarithm of the ratio [K, B].
    """
    scale = torch.exp(0.5 * log_variance)
    z = loc + scale * noise.unsqueeze(1)
    log_prior = _standard_normal(z)
    log_posterior = _standard_normal((z - loc) / scale) - torch.log(scale).sum(-1)
    return z, log_prior - log_posterior


def _standard_normal(x: Tensor) -> Tensor:
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)
