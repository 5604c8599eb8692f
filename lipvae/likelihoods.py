"""Families of p(x | z): what a decoder's parameters mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lipvae._validate import check_tensor, describe
from lipvae.functional import importance_log_likelihood


class Likelihood(ABC):
    """A family p(x | z) whose D dimensions are independent given z.

    Parameters are [..., P * D]: the D values of the first parameter, then those of the second.

    Attributes:
        name: the family's name, as ops and configurations use it.
        parameters_per_dim: P.
    """

    name: ClassVar[str]
    parameters_per_dim: ClassVar[int]

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) summed over the dimensions, equation (5).

        Args:
            parameters: [K, B, P * D], or [B, P * D].
            x: [B, D] in [0, 1].

        Returns:
            [K, B], or [B], in nats.

        Example:
            >>> Bernoulli().log_prob(torch.zeros(1, 2), torch.ones(1, 2))
            tensor([-1.3863])
        """
        check_tensor("parameters", parameters)
        if parameters.dim() == 2:
            return importance_log_likelihood(parameters.unsqueeze(0), x, self.name).squeeze(0)
        return importance_log_likelihood(parameters, x, self.name)

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """E[x | z]: [..., P * D] -> [..., D]."""

    @abstractmethod
    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws x: [..., P * D] -> [..., D]."""

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        check_tensor("parameters", parameters, min_dim=1)
        if parameters.shape[-1] % self.parameters_per_dim:
            raise ValueError(
                f"parameters must have a last dimension divisible by {self.parameters_per_dim} "
                f"for {self.name!r}, got {describe(parameters)}"
            )
        return parameters.unflatten(-1, (self.parameters_per_dim, -1)).unbind(-2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform draws from (0, 1), in double: a float32 0 would put a logistic at infinity."""
    device = like.device if generator is None else generator.device
    u = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float64)
    return u.clamp_(min=2.0**-54).to(like.device)


class Bernoulli(Likelihood):
    """Bernoulli with logits; grey values x in [0, 1] enter as x l - softplus(l)."""

    name = "bernoulli"
    parameters_per_dim = 1

    def mean(self, parameters: Tensor) -> Tensor:
        """sigma(l)."""
        (logit,) = self._split(parameters)
        return torch.sigmoid(logit)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """0 or 1."""
        (logit,) = self._split(parameters)
        return (_uniform(logit, generator) < torch.sigmoid(logit)).to(logit.dtype)


class ContinuousBernoulli(Likelihood):
    """Density proportional to e^(l x) on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    name = "continuous_bernoulli"
    parameters_per_dim = 1

    def mean(self, parameters: Tensor) -> Tensor:
        """1 / (1 - e^-l) - 1 / l."""
        (logit,) = self._split(parameters)
        small = logit.abs() < 0.1
        far = torch.where(small, torch.ones_like(logit), logit)
        near = torch.where(small, logit, torch.zeros_like(logit))
        series = 0.5 + near / 12 - near**3 / 720 + near**5 / 30240
        return torch.where(small, series, -1 / torch.expm1(-far) - 1 / far)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of the distribution function, in double."""
        (logit,) = self._split(parameters)
        u = _uniform(logit, generator)
        # With -|l| the exponential cannot overflow; x -> 1 - x turns the sign back.
        rate = -logit.double().abs()
        flat = rate > -1e-8
        safe = torch.where(flat, -torch.ones_like(rate), rate)
        x = torch.where(flat, u, torch.log1p(u * torch.expm1(safe)) / safe)
        return torch.where(logit > 0, 1 - x, x).to(logit.dtype)


class Gaussian(Likelihood):
    """Normal with mean and log scale."""

    name = "gaussian"
    parameters_per_dim = 2

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean, which may lie outside [0, 1]."""
        return self._split(parameters)[0]

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normal draws, which may lie outside [0, 1]."""
        mean, log_scale = self._split(parameters)
        device = mean.device if generator is None else generator.device
        noise = torch.randn(mean.shape, generator=generator, device=device, dtype=mean.dtype)
        return mean + torch.exp(log_scale) * noise.to(mean.device)


class DiscretizedLogistic(Likelihood):
    """A logistic on 256 bins of [0, 1], the outer ones open (Salimans et al. 2017)."""

    name = "discretized_logistic"
    parameters_per_dim = 2

    def mean(self, parameters: Tensor) -> Tensor:
        """Mean grey level over 255: the sum over k = 1..255 of P(level >= k), over 255."""
        location, log_scale = self._split(parameters)
        inverse = torch.exp(-log_scale)
        total = torch.zeros_like(location)
        for level in range(1, 256):
            total += torch.sigmoid((location - (level - 0.5) / 255) * inverse)
        return total / 255

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A grey level over 255."""
        location, log_scale = self._split(parameters)
        u = _uniform(location, generator)
        x = location.double() + torch.exp(log_scale.double()) * (u.log() - torch.log1p(-u))
        # The outer bins reach to infinity, so what falls outside belongs to them.
        return ((x * 255).round().clamp(0, 255) / 255).to(location.dtype)


class Categorical256(Likelihood):
    """256 logits a dimension, one for each grey level."""

    name = "categorical256"
    parameters_per_dim = 256

    def mean(self, parameters: Tensor) -> Tensor:
        """Mean grey level over 255."""
        probability = torch.softmax(torch.stack(self._split(parameters), -1), -1)
        levels = torch.arange(256, device=parameters.device, dtype=probability.dtype) / 255
        return probability @ levels

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A grey level over 255, by the largest logit plus Gumbel noise."""
        logits = torch.stack(self._split(parameters), -1)
        gumbel = -torch.log(-torch.log(_uniform(logits, generator)))
        return (logits + gumbel).argmax(-1).to(logits.dtype) / 255


LIKELIHOODS: dict[str, type[Likelihood]] = {
    family.name: family
    for family in (Bernoulli, ContinuousBernoulli, Gaussian, DiscretizedLogistic, Categorical256)
}


def get(name: str) -> Likelihood:
    """The likelihood of a family's name.

    Args:
        name: "bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic" or
            "categorical256".

    Raises:
        ValueError: for another name.

    Example:
        >>> get("bernoulli")
        Bernoulli()
    """
    if not isinstance(name, str) or name not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {name!r}")
    return LIKELIHOODS[name]()
