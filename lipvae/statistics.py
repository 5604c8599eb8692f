"""Statistics of importance weights over the samples k, equation (6), streamed over k."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float64).max


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
        self._ll = _Moments()
        self._log_weight = _Moments()
        self._peak: Tensor
        self._sum: Tensor
        self._square_sum: Tensor

    def update(self, log_likelihood: Tensor, log_prior: Tensor, log_posterior: Tensor) -> None:
        """Adds samples.

        Args:
            log_likelihood: [K', B], log p(x | z_k), K' >= 1.
            log_prior: [K', B] (or broadcastable), log p(z_k).
            log_posterior: [K', B] (or broadcastable), log q(z_k | x).
        """
        ll = log_likelihood.double()
        log_weight = ll + log_prior.double() - log_posterior.double()
        self._ll.merge(ll)
        self._log_weight.merge(log_weight)
        # Finite, so that weights of zero (or of infinity) don't become infinity minus infinity.
        peak = log_weight.amax(0).clamp(-_LARGEST, _LARGEST)
        if self._ll.count > len(ll):
            peak = torch.maximum(peak, self._peak)
        weight = torch.exp(log_weight - peak)
        total, square_total = weight.sum(0), weight.square().sum(0)
        if self._ll.count > len(ll):
            scale = torch.exp(self._peak - peak)
            total = total + self._sum * scale
            square_total = square_total + self._square_sum * scale.square()
        self._peak, self._sum, self._square_sum = peak, total, square_total

    def statistics(self) -> ImportanceStatistics:
        """The statistics of all samples so far.

        Raises:
            ValueError: before the first update.
        """
        if not self._ll.count:
            raise ValueError("no samples were added: call update() first")
        return ImportanceStatistics(
            log_likelihood_mean=self._ll.mean,
            hole_indicator=self._ll.std(),
            stds_of_lls=self._log_weight.std(),
            is_log_likelihood=self._peak + (self._sum / self._ll.count).log(),
            elbo=self._log_weight.mean,
            kl=self._ll.mean - self._log_weight.mean,
            ess=self._sum.square() / self._square_sum,
            num_samples=self._ll.count,
        )


class _Moments:
    """Running mean and sum of squared deviations over the first dimension."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor
        self.square: Tensor

    def merge(self, x: Tensor) -> None:
        count = len(x)
        variance, mean = torch.var_mean(x, 0, correction=0)
        square = variance * count
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
