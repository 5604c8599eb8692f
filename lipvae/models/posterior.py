"""Approximate posteriors q(z | x) as encoders return them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lipvae import ops
from lipvae._lazy import lazy
from lipvae.distributions import versine
from lipvae.ops.vmf_density import log_area, moment

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


class Streams(NamedTuple):
    """The noise of a von Mises-Fisher posterior: random streams, of which each row takes its own.

    Attributes:
        seed: int64 [1].
        num_samples: K.
        start: index of the first sample.
        shared: whether all rows take the stream of sample k, as the scores do.
    """

    seed: Tensor
    num_samples: int
    start: int = 0
    shared: bool = False


@dataclass(frozen=True, eq=False)
class VonMisesFisherPosterior:
    r"""q(z | x) = vMF(loc, concentration) on the sphere S^(m-1), equation (4).

    Densities are with respect to the sphere's area. See
    :class:`lipvae.distributions.VonMisesFisher` for the distribution on torch's protocol.

    Attributes:
        loc: mean directions [B, m], of norm 1.
        concentration: kappa >= 0, [B].

    Example:
        >>> posterior = VonMisesFisherPosterior(torch.eye(3)[:2], torch.tensor([0.0, 20.0]))
        >>> posterior.rsample(Streams(torch.tensor([7]), 5)).shape, posterior.kl()
        (torch.Size([5, 2, 3]), tensor([0.0000, 2.6889]))
    """

    loc: Tensor
    concentration: Tensor

    @property
    def dim(self) -> int:
        """m, the dimension of the space around the sphere."""
        return self.loc.shape[-1]

    def rsample(self, noise: Streams) -> Tensor:
        """Samples with their gradient, :func:`lipvae.functional.sample_vmf`.

        Args:
            noise: which random streams, and how many samples K.

        Returns:
            [K, B, m] of norm 1, differentiable with respect to the posterior's parameters.
        """
        seed, samples, start, shared = noise
        return ops.vmf(self.loc, self.concentration, samples, seed, start, shared)[0]

    @lazy
    def _log_peak(self) -> Tensor:
        """The log density at the mean direction, [B]."""
        return moment("deficit", self.concentration, self.dim) - log_area(self.dim)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z | x): [K, B, m], of which only the direction counts, -> [K, B]."""
        return self._log_peak - self.concentration * versine(z, self.loc)

    def kl(self) -> Tensor:
        """KL(q(z | x) || uniform), analytic, [B] in nats."""
        return moment("kl", self.concentration, self.dim)

    def __getitem__(self, index: int | slice | Tensor) -> VonMisesFisherPosterior:
        """The posteriors of some of the rows; an int keeps the batch dimension."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return VonMisesFisherPosterior(self.loc[index], self.concentration[index])
