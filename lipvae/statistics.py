"""Statistics of importance weights over the samples k, equation (6), streamed over k."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipvae.ops.importance_statistics import STATE, add_samples, has_kernel

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


# The names of those that are tensors, in order.
STATISTICS = tuple(field.name for field in fields(ImportanceStatistics))[:-1]


def joined_statistics(parts: Sequence[ImportanceStatistics]) -> ImportanceStatistics:
    """The statistics of all inputs, of those of some of them each."""
    if len(parts) == 1:
        return parts[0]
    found = {name: torch.cat([getattr(part, name) for part in parts]) for name in STATISTICS}
    return ImportanceStatistics(**found, num_samples=parts[0].num_samples)


class ImportanceAccumulator:
    """Streams samples into :class:`ImportanceStatistics` in memory that does not grow with K.

    Means and squared deviations merge by Chan, Golub & LeVeque (1979); the weights' sums are kept
    relative to the running maximum, so log-likelihoods of any size are safe. The C++ and Triton
    kernels do it in one call; torch does where a gradient is asked for.

    Example:
        >>> import torch
        >>> accumulator = ImportanceAccumulator()
        >>> for chunk in torch.tensor([[-3.0], [-1.0], [-2.0]]).split(2):
        ...     accumulator.update(chunk, torch.zeros_like(chunk))
        >>> accumulator.statistics().hole_indicator
        tensor([1.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._sums: _KernelSums | _TorchSums | None = None

    def update(self, log_likelihood: Tensor, log_ratio: Tensor) -> None:
        """Adds samples.

        Args:
            log_likelihood: [K', B], log p(x | z_k), K' >= 1.
            log_ratio: [K', B], log p(z_k) - log q(z_k | x).
        """
        if self._sums is None:
            by_kernel = has_kernel(log_likelihood, log_ratio)
            self._sums = _KernelSums(log_likelihood) if by_kernel else _TorchSums()
        self._sums.add(log_likelihood, log_ratio.double())

    def statistics(self) -> ImportanceStatistics:
        """The statistics of all samples so far.

        Raises:
            ValueError: before the first update.
        """
        if self._sums is None:
            raise ValueError("no samples were added: call update() first")
        found = dict(zip(STATISTICS, self._sums.statistics(), strict=True))
        return ImportanceStatistics(**found, num_samples=self._sums.count)


class _KernelSums:
    """By :mod:`lipvae.ops.importance_statistics`."""

    def __init__(self, log_likelihood: Tensor) -> None:
        batch = log_likelihood.shape[1]
        self.count = 0
        self._state = log_likelihood.new_empty(batch, STATE, dtype=torch.float64)
        self._statistics = log_likelihood.new_empty(STATE, batch, dtype=torch.float64)

    def add(self, log_likelihood: Tensor, log_ratio: Tensor) -> None:
        add_samples(log_likelihood, log_ratio, self._state, self._statistics, self.count)
        self.count += len(log_likelihood)

    def statistics(self) -> Iterable[Tensor]:
        return self._statistics.clone().unbind()


class _TorchSums:
    """The same in torch, with a gradient."""

    def __init__(self) -> None:
        self.count = 0
        self._ll, self._log_weight = _Moments(), _Moments()
        self._peak: Tensor
        self._sum: Tensor
        self._square_sum: Tensor

    def add(self, log_likelihood: Tensor, log_ratio: Tensor) -> None:
        ll = log_likelihood.double()
        log_weight = ll + log_ratio
        self._ll.merge(ll)
        self._log_weight.merge(log_weight)
        # Finite, so that weights of zero (or of infinity) don't become infinity minus infinity.
        peak = log_weight.amax(0).clamp(-_LARGEST, _LARGEST)
        if self.count:
            peak = torch.maximum(peak, self._peak)
        weight = torch.exp(log_weight - peak)
        total, square_total = weight.sum(0), weight.square().sum(0)
        if self.count:
            scale = torch.exp(self._peak - peak)
            total = total + self._sum * scale
            square_total = square_total + self._square_sum * scale.square()
        self._peak, self._sum, self._square_sum = peak, total, square_total
        self.count += len(ll)

    def statistics(self) -> Iterable[Tensor]:
        return (
            self._ll.mean,
            self._ll.std(),
            self._log_weight.std(),
            self._peak + (self._sum / self.count).log(),
            self._log_weight.mean,
            self._ll.mean - self._log_weight.mean,
            self._sum.square() / self._square_sum,
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
