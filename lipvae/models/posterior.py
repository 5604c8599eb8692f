"""Approximate posteriors q(z | x) as encoders return them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I): [..., m] -> [...]."""
    return -0.5 * (z.square() + LOG_2PI).sum(-1)


@dataclass(frozen=True, eq=False)
class NormalPosterior:
    """q(z | x) = N(loc, diag(scale^2)) for a batch of inputs.

    Attributes:
        loc: [B, m].
        log_variance: [B, m].

    Example:
        >>> posterior = NormalPosterior(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> posterior.rsample(torch.randn(5, 2, 3)).shape, posterior.kl()
        (torch.Size([5, 2, 3]), tensor([0., 0.]))
    """

    loc: Tensor
    log_variance: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations [B, m]."""
        return torch.exp(0.5 * self.log_variance)

    def rsample(self, noise: Tensor) -> Tensor:
        """z = loc + scale * noise.

        Args:
            noise: standard normal [K, B, m], or [K, 1, m] for the same noise in every row.

        Returns:
            [K, B, m], differentiable with respect to the posterior's parameters.
        """
        return self.loc + self.scale * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z | x): [K, B, m] -> [K, B]."""
        standard = (z - self.loc) * torch.exp(-0.5 * self.log_variance)
        return standard_normal_log_prob(standard) - 0.5 * self.log_variance.sum(-1)

    def kl(self) -> Tensor:
        """KL(q(z | x) || N(0, I)), analytic, [B] in nats."""
        variance_excess = torch.expm1(self.log_variance) - self.log_variance
        return 0.5 * (self.loc.square() + variance_excess).sum(-1)

    def __getitem__(self, index: int | slice | Tensor) -> NormalPosterior:
        """The posteriors of some of the rows; an int keeps the batch dimension."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return NormalPosterior(self.loc[index], self.log_variance[index])
