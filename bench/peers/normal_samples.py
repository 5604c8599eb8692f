"""Samples of normal posteriors with their densities, by torch.distributions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal


def eager(
    loc: Tensor, log_variance: Tensor, noise: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """z [K, B, m] and log p(z) - log q(z | x) [K, B]."""
    scale = (0.5 * log_variance).exp()
    z = loc + scale * noise.unsqueeze(1)
    standard = Normal(torch.zeros_like(loc), torch.ones_like(loc), validate_args=False)
    posterior = Normal(loc, scale, validate_args=False)
    return z.to(dtype), (standard.log_prob(z) - posterior.log_prob(z)).sum(-1)
