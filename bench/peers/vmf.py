"""Samples of a von Mises-Fisher distribution on the unit sphere of R^m."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import vonmises_fisher
from torch import Tensor


def scipy_sample(loc: Tensor, concentration: float, n: int, seed: int = 0) -> Tensor:
    """scipy.stats.vonmises_fisher: one mean direction, double precision."""
    generator = np.random.default_rng(seed)
    drawn = vonmises_fisher(loc.double().numpy(), concentration).rvs(n, random_state=generator)
    return torch.from_numpy(drawn)


def wood_sample(loc: Tensor, concentration: Tensor, n: int) -> Tensor:
    """Wood (1994) in eager torch, as VAE code bases write it, in double and without their faults.

    Args:
        loc: [B, m], unit vectors.
        concentration: [B].
        n: samples of each.

    Returns:
        [n, B, m].
    """
    batch, m = loc.shape
    loc = loc.double()
    kappa = concentration.double().expand(n, batch)
    b = (m - 1) / (2 * kappa + torch.sqrt(4 * kappa**2 + (m - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + (m - 1) * torch.log1p(-(x0**2))
    beta = torch.distributions.Beta((m - 1) / 2, (m - 1) / 2)
    along = torch.empty_like(kappa)
    open_ = torch.ones_like(kappa, dtype=torch.bool)
    while open_.any():
        z = beta.sample(kappa.shape).double()
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        bound = kappa * w + (m - 1) * torch.log1p(-x0 * w) - c
        accepted = open_ & (bound >= torch.rand_like(w).log())
        along[accepted] = w[accepted]
        open_ &= ~accepted
    tangent = torch.randn(n, batch, m - 1, dtype=torch.float64)
    tangent = tangent / tangent.norm(dim=-1, keepdim=True)
    across = torch.sqrt((1 - along**2).clamp(min=0)).unsqueeze(-1) * tangent
    sample = torch.cat([along.unsqueeze(-1), across], -1)
    # The reflection that takes the first axis to loc.
    mirror = -loc.clone()
    mirror[:, 0] += 1
    length = mirror.norm(dim=-1, keepdim=True)
    mirror = torch.where(length > 1e-12, mirror / length, 0.0)
    return sample - 2 * (sample * mirror).sum(-1, keepdim=True) * mirror


def mean_along(m: int, kappa: float) -> float:
    """E[mu . x] = I_{m/2}(kappa) / I_{m/2 - 1}(kappa), by the continued fraction of Gauss."""
    order, value = m / 2 - 1, 0.0
    for j in range(2000, 0, -1):
        value = 1.0 / (2 * (order + j) / kappa + value)
    return value if math.isfinite(value) else float("nan")
