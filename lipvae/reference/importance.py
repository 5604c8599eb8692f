"""Log-likelihoods of decoded samples and their statistics, equations (5) and (6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x). torch's own drops the tail above 20, an error of 2e-9."""
    return -logsigmoid(-x)


def _bernoulli(parameters: Tensor, x: Tensor) -> Tensor:
    """x l - softplus(l) of logits l; x in [0, 1], grey values allowed."""
    (logit,) = parameters.unbind(-2)
    return x * logit - _softplus(logit)


def _continuous_bernoulli(parameters: Tensor, x: Tensor) -> Tensor:
    """Bernoulli plus log normaliser log(l / tanh(l / 2)) (Loaiza-Ganem & Cunningham 2019)."""
    (logit,) = parameters.unbind(-2)
    small = logit.abs() < 0.05
    far = torch.where(small, torch.ones_like(logit), logit)
    square = torch.where(small, logit, torch.zeros_like(logit)).square()
    series = 1 + square * (1 / 12 - square * (1 / 720 - square / 30240))
    normaliser = torch.where(small, math.log(2.0) + series.log(), (far / torch.tanh(far / 2)).log())
    return x * logit - _softplus(logit) + normaliser


def _gaussian(parameters: Tensor, x: Tensor) -> Tensor:
    """Normal log density with parameters (mean, log scale)."""
    mean, log_scale = parameters.unbind(-2)
    standard = (x - mean) * torch.exp(-log_scale)
    return -0.5 * standard.square() - log_scale - 0.5 * math.log(2 * math.pi)


def _discretized_logistic(parameters: Tensor, x: Tensor) -> Tensor:
    """Mass of a logistic with (mean, log scale) on the interval of width 1/255 around x.

    At a grey level that is its bin, one of 256 on [0, 1]; the outer ones reach to infinity
    (Salimans et al. 2017). The mass between two points comes from
    sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), which does not cancel.
    """
    mean, log_scale = parameters.unbind(-2)
    inverse = torch.exp(-log_scale)
    upper = (x + 1 / 510 - mean) * inverse
    lower = (x - 1 / 510 - mean) * inverse
    inside = logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1(-inverse / 255))
    low, high = x < 0.5 / 255, x > 254.5 / 255
    return torch.where(low, logsigmoid(upper), torch.where(high, logsigmoid(-lower), inside))


def _categorical256(parameters: Tensor, x: Tensor) -> Tensor:
    """Log softmax of 256 logits at the grey level 255 x."""
    level = (x * 255).round().long().expand(parameters.shape[:-2] + x.shape[-1:])
    chosen = parameters.gather(-2, level.unsqueeze(-2)).squeeze(-2)
    return chosen - torch.logsumexp(parameters, -2)


def _bernoulli_backward(parameters: Tensor, x: Tensor) -> Tensor:
    return x.unsqueeze(-2) - parameters.sigmoid()


# 1/l - 1/sinh(l) = l (c_0 - l^2 (c_1 - l^2 (c_2 - ...))).
_SLOPE_SERIES = (
    1 / 6,
    7 / 360,
    31 / 15120,
    127 / 604800,
    73 / 3421440,
    1414477 / 653837184000,
    8191 / 37362124800,
)


def _continuous_bernoulli_backward(parameters: Tensor, x: Tensor) -> Tensor:
    """The normaliser adds 1/l - 1/sinh(l), which cancels near 0."""
    small = parameters.abs() < 0.25
    far = torch.where(small, torch.ones_like(parameters), parameters)
    near = torch.where(small, parameters, torch.zeros_like(parameters))
    series = torch.zeros_like(near)
    for coefficient in reversed(_SLOPE_SERIES):
        series = coefficient - near.square() * series
    # 1 / sinh(l) by exponentials that do not overflow, nor do its derivatives.
    size = far.abs()
    cosecant = far.sign() * 2 * torch.exp(-size) / -torch.expm1(-2 * size)
    slope = torch.where(small, near * series, 1 / far - cosecant)
    return _bernoulli_backward(parameters, x) + slope


def _gaussian_backward(parameters: Tensor, x: Tensor) -> Tensor:
    mean, log_scale = parameters.unbind(-2)
    inverse = torch.exp(-log_scale)
    standard = (x - mean) * inverse
    return torch.stack([standard * inverse, standard.square() - 1], -2)


def _discretized_logistic_backward(parameters: Tensor, x: Tensor) -> Tensor:
    mean, log_scale = parameters.unbind(-2)
    inverse = torch.exp(-log_scale)
    upper = (x + 1 / 510 - mean) * inverse
    lower = (x - 1 / 510 - mean) * inverse
    low, high = x < 0.5 / 255, x > 254.5 / 255
    zero = torch.zeros_like(upper)
    slope_upper = torch.where(high, zero, torch.sigmoid(-upper))
    slope_lower = torch.where(low, zero, -torch.sigmoid(lower))
    width = inverse / 255
    # width / expm1(width), likewise.
    by_width = width * torch.exp(-width) / -torch.expm1(-width)
    slope_width = torch.where(low | high, zero, by_width)
    by_mean = -inverse * (slope_upper + slope_lower)
    by_log_scale = -upper * slope_upper - lower * slope_lower - slope_width
    return torch.stack([by_mean, by_log_scale], -2)


def _categorical256_backward(parameters: Tensor, x: Tensor) -> Tensor:
    level = (x * 255).round().long().expand(parameters.shape[:-2] + x.shape[-1:])
    chosen = torch.nn.functional.one_hot(level, 256).movedim(-1, -2)
    return chosen.to(parameters.dtype) - parameters.softmax(-2)


@dataclass(frozen=True)
class Family:
    """A likelihood p(x | z) that factorises over the dimensions of x.

    Attributes:
        parameters_per_dim: P, the decoder's outputs for one dimension of x.
        log_density: ([..., P, D], [..., D]) -> [..., D].
        log_density_backward: the same -> [..., P, D], derivative in the parameters.
    """

    parameters_per_dim: int
    log_density: Callable[[Tensor, Tensor], Tensor]
    log_density_backward: Callable[[Tensor, Tensor], Tensor]


# In the order of the kernels' codes.
FAMILIES: dict[str, Family] = {
    "bernoulli": Family(1, _bernoulli, _bernoulli_backward),
    "continuous_bernoulli": Family(1, _continuous_bernoulli, _continuous_bernoulli_backward),
    "gaussian": Family(2, _gaussian, _gaussian_backward),
    "discretized_logistic": Family(2, _discretized_logistic, _discretized_logistic_backward),
    "categorical256": Family(256, _categorical256, _categorical256_backward),
}


def importance(parameters: Tensor, target: Tensor, family: str = "bernoulli") -> Tensor:
    """log p(x | z_k), the reduction over dimensions of equation (5).

    Args:
        parameters: [K, B, P * D], the decoder's output; P is the family's count of parameters a
            dimension, and the D values of one parameter are neighbours.
        target: [B, D], the inputs in [0, 1].
        family: a key of `FAMILIES`.

    Returns:
        [K, B] in the dtype of `parameters`.
    """
    chosen = FAMILIES[family]
    split = parameters.unflatten(-1, (chosen.parameters_per_dim, target.shape[-1]))
    return chosen.log_density(split, target).sum(-1)


def importance_backward(
    grad: Tensor, parameters: Tensor, target: Tensor, family: str = "bernoulli"
) -> Tensor:
    """Gradient of :func:`importance` with respect to the parameters, written out.

    Args:
        grad: [K, B].
        parameters: [K, B, P * D].
        target: [B, D].
        family: a key of `FAMILIES`.

    Returns:
        [K, B, P * D].
    """
    chosen = FAMILIES[family]
    split = parameters.unflatten(-1, (chosen.parameters_per_dim, target.shape[-1]))
    slope = chosen.log_density_backward(split, target).flatten(-2)
    return (grad.unsqueeze(-1) * slope).to(parameters.dtype)


def importance_statistics(
    log_likelihood: Tensor, log_prior: Tensor, log_posterior: Tensor
) -> dict[str, Tensor]:
    """Statistics of equation (6) and their companions, over the samples k.

    Args:
        log_likelihood: [K, B], log p(x | z_k).
        log_prior: [K, B], log p(z_k).
        log_posterior: [K, B], log q(z_k | x).

    Returns:
        float64 [B] each: `log_likelihood_mean`, `hole_indicator` (sample std of
        log p(x | z_k)), `stds_of_lls` (sample std of log w_k), `is_log_likelihood`
        (logsumexp log w_k - log K), `elbo` (mean of log w_k), `kl` (mean of log q - log p(z)),
        `ess` ((sum w)^2 / sum w^2).
    """
    ll = log_likelihood.double()
    log_weight = ll + log_prior.double() - log_posterior.double()
    weight = torch.softmax(log_weight, 0)
    return {
        "log_likelihood_mean": ll.mean(0),
        "hole_indicator": ll.std(0, correction=1),
        "stds_of_lls": log_weight.std(0, correction=1),
        "is_log_likelihood": torch.logsumexp(log_weight, 0) - math.log(len(ll)),
        "elbo": log_weight.mean(0),
        "kl": (ll - log_weight).mean(0),
        "ess": 1 / weight.square().sum(0),
    }
