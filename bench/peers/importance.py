"""log p(x | z_k) from logits or moments in memory, with torch's own densities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributions
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def bernoulli(parameters: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy from logits."""
    x = target.expand_as(parameters)
    return -binary_cross_entropy_with_logits(parameters, x, reduction="none").sum(-1)


def bernoulli_formula(parameters: Tensor, target: Tensor) -> Tensor:
    """x l - softplus(l), the least work in eager mode."""
    return (target * parameters - torch.nn.functional.softplus(parameters)).sum(-1)


def continuous_bernoulli(parameters: Tensor, target: Tensor) -> Tensor:
    """torch.distributions.ContinuousBernoulli."""
    family = distributions.ContinuousBernoulli(logits=parameters, validate_args=False)
    return family.log_prob(target).sum(-1)


def gaussian(parameters: Tensor, target: Tensor) -> Tensor:
    """torch.distributions.Normal."""
    mean, log_scale = parameters.chunk(2, -1)
    return distributions.Normal(mean, log_scale.exp(), validate_args=False).log_prob(target).sum(-1)


def discretized_logistic(parameters: Tensor, target: Tensor) -> Tensor:
    """Differences of the distribution function over 256 bins, floored at 1e-12, as is usual."""
    mean, log_scale = parameters.chunk(2, -1)
    inverse, centred = (-log_scale).exp(), target - mean
    upper = torch.sigmoid((centred + 1 / 510) * inverse)
    lower = torch.sigmoid((centred - 1 / 510) * inverse)
    upper = torch.where(target > 0.999, 1.0, upper)
    lower = torch.where(target < 0.001, 0.0, lower)
    return (upper - lower).clamp(min=1e-12).log().sum(-1)


def categorical256(parameters: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over 256 classes; parameters [K, B, 256 * D], classes slowest."""
    k, b, _ = parameters.shape
    logits = parameters.view(k * b, 256, -1)
    level = (target * 255).round().long().repeat(k, 1)
    return -cross_entropy(logits, level, reduction="none").view(k, b, -1).sum(-1)


PEERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "discretized_logistic": discretized_logistic,
    "categorical256": categorical256,
}
