"""Statistics of importance weights over the samples k, equation (6), streamed over k."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImportanceStatistics:
    """What K samples say of each input, equations (5) and (6). All float64 [B], in nats.

    Attributes:
        log_likelihood_mean: mean over k of log p(x | z_k).
        hole_indicator: sample standard deviation (ddof 1) over k of log p(x | z_k); NaN at K = 1.
        stds_of_lls: sample standard deviation (ddof 1) of log w_k; NaN at K = 1.
        is_log_likelihood: logsumexp_k log w_k - log K, the importance-sampled log p(x).
        elbo: mean of log w_k, a Monte Carlo estimate of the evidence lower bound.
        kl: mean of log q(z_k | x) - log p(z_k), a Monte Carlo estimate of the divergence.
        ess: effective sample size (sum w)^2 / sum w^2, in [1, K].
        num_samples: K.
    """

    log_likelihood_mean: Tensor
    hole_indicator: Tensor
    stds_of_lls: Tensor
    is_log_likelihood: Tensor
    elbo: Tensor
    kl: Tensor
    ess: Tensor
    num_samples: int


class ImportanceAccumulator:
    """Streams samples into :class:`ImportanceStatistics` in memory that does not grow with K.

    Means and squared deviations merge by Chan, Golub & LeVeque (1979); the weights' sums are kept
    relative to the running maximum, so log-likelihoods of any size are safe.

    Example:
        >>> import torch
        >>> accumulator = ImportanceAccumulator()
        >>> for chunk in torch.tensor([[-3.0], [-1.0], [-2.0]]).split(2):
        ...     accumulator.update(chunk, torch.zeros_like(chunk), torch.zeros_like(chunk))
        >>> accumulator.statistics().hole_indicator
        tensor([1.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._count = 0
        self._ll = _Moments()
        self._log_weight = _Moments()
        self._peak: Tensor | None = None
        self._sum = self._square_sum = torch.zeros((), dtype=torch.float64)

    def update(self, log_likelihood: Tensor, log_prior: Tensor, log_posterior: Tensor) -> None:
        """Adds samples.

        Args:
            log_likelihood: [K', B], log p(x | z_k), K' >= 1.
            log_prior: [K', B] (or broadcastable), log p(z_k).
            log_posterior: [K', B] (or broadcastable), log q(z_k | x).
        """
        ll = log_likelihood.double()
        log_weight = ll + log_prior.double() - log_posterior.double()
        self._count += len(ll)
        self._ll.merge(ll)
        self._log_weight.merge(log_weight)
        peak = log_weight.amax(0)
        if self._peak is not None:
            peak = torch.maximum(peak, self._peak)
            scale = _exp_difference(self._peak, peak)
            self._sum = self._sum * scale
            self._square_sum = self._square_sum * scale.square()
        weight = _exp_difference(log_weight, peak)
        self._sum = self._sum + weight.sum(0)
        self._square_sum = self._square_sum + weight.square().sum(0)
        self._peak = peak

    def statistics(self) -> ImportanceStatistics:
        """The statistics of all samples so far.

        Raises:
            ValueError: before the first update.
        """
        if self._peak is None:
            raise ValueError("no samples were added: call update() first")
        return ImportanceStatistics(
            log_likelihood_mean=self._ll.mean,
            hole_indicator=self._ll.std(),
            stds_of_lls=self._log_weight.std(),
            is_log_likelihood=self._peak + self._sum.log() - math.log(self._count),
            elbo=self._log_weight.mean,
            kl=self._ll.mean - self._log_weight.mean,
            ess=self._sum.square() / self._square_sum,
            num_samples=self._count,
        )


def _exp_difference(x: Tensor, peak: Tensor) -> Tensor:
    """exp(x - peak), 1 where both are the same infinity."""
    return torch.where(x == peak, torch.ones_like(x), torch.exp(x - peak))


class _Moments:
    """Running mean and sum of squared deviations over the first dimension."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.square = torch.zeros((), dtype=torch.float64)

    def merge(self, x: Tensor) -> None:
        count = len(x)
        mean = x.mean(0)
        square = (x - mean).square().sum(0)
        if self.count:
            delta = mean - self.mean
            total = self.count + count
            square = self.square + square + delta.square() * (self.count * count / total)
            mean = self.mean + delta * (count / total)
            count = total
        self.count, self.mean, self.square = count, mean, square

    def std(self) -> Tensor:
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return (self.square / (self.count - 1)).sqrt()
