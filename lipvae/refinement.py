"""Refinement of an encoder's posterior, input by input, before it is sampled."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lipvae import ops
from lipvae.models import VAE
from lipvae.models.posterior import NormalPosterior
from lipvae.noise import standard_normal

# Pairs of antithetic samples that estimate the ELBO: the gradient of its prior term is then exact.
PAIRS = 8

# Step lengths tried along the direction, of a natural-gradient step.
LENGTHS = (1.0, 0.5, 0.25, 0.125)

# Of the noise: that of the scores' samples is stream 0. Draws of weights begin at stream 1 as well,
# which does no harm: nothing compares the two.
STREAM = 1

# log p(x | z) [K, B] of samples [K, B, m] and targets [B, D].
LogLikelihood = Callable[[Tensor, Tensor], Tensor]


def antithetic_noise(seed: int, dim: int) -> Tensor:
    """Standard normal noise and its negative, float64 [16, 1, m]; the same for every input.

    Args:
        seed: in [0, 2^64).
        dim: m.
    """
    noise = standard_normal(seed, PAIRS, dim, stream=STREAM).unsqueeze(1)
    return torch.cat([noise, -noise])


def refined(
    model: VAE,
    posterior: NormalPosterior,
    target: Tensor,
    noise: Tensor,
    steps: int,
    search: LogLikelihood | None = None,
) -> NormalPosterior:
    r"""Moves the means of q(z | x) up the ELBO, each input's by its own steps.

    An encoder that was trained on many inputs is near the best mean for each, not at it: the
    amortisation gap. A step of natural gradient for a Gaussian's mean is

    .. math:: \mu \leftarrow \mu + \rho\,\sigma^2 \odot \nabla_\mu\,
        \mathbb{E}_{q}[\log p(x \mid z) + \log p(z)],

    which is Newton's where q has the width of the true posterior. The expectation is that of 16
    fixed antithetic samples, and rho the best of 1, 1/2, 1/4, 1/8 and 0 for each input, so the
    ELBO never falls by more than rounding. The variances stay as the encoder gave them.

    Args:
        model: in evaluation mode.
        posterior: of [B] inputs.
        target: the inputs, [B, D].
        noise: of :func:`antithetic_noise`.
        steps: how many; 0 returns `posterior`.
        search: log p(x | z) at the lengths that are tried, where no gradient is needed; equal to
            the model's up to rounding. None for the model's.

    Returns:
        The posterior with other means.

    Source: Cremer, Li & Duvenaud 2018, for the gap; Kim et al. 2018, "Semi-Amortized Variational
    Autoencoders", for closing it by steps on each input.

    Example:
        >>> import lipvae, torch
        >>> model = lipvae.VAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,)).eval()
        >>> x = torch.rand(3, 1, 8, 8)
        >>> with torch.no_grad():
        ...     q = model.encode(x)
        >>> noise = antithetic_noise(seed=0, dim=2)
        >>> refined(model, q, x.flatten(1), noise, steps=2).loc.shape
        torch.Size([3, 2])
    """
    if steps == 0:
        return posterior
    # Tensors made in inference mode take no part in a gradient; copies made outside it do.
    with torch.inference_mode(False), torch.no_grad():
        loc, log_variance, target = (
            t.clone() for t in (posterior.loc, posterior.log_variance, target)
        )
        variance = log_variance.exp()
        offsets = (0.5 * log_variance).exp() * noise.to(loc)
        for _ in range(steps):
            loc = _step(model, loc, variance, offsets, target, search or _by_model(model))
    return NormalPosterior(loc, posterior.log_variance)


def _by_model(model: VAE) -> LogLikelihood:
    return lambda z, target: ops.importance(model.decode(z), target, model.likelihood.name)


@functools.cache
def _lengths(device: torch.device, dtype: torch.dtype) -> Tensor:
    """LENGTHS as [L, 1, 1]: made anew in each step, they would make a GPU wait."""
    with torch.inference_mode(False):
        return torch.tensor(LENGTHS, device=device, dtype=dtype).view(-1, 1, 1)


def _objective(
    model: VAE, loc: Tensor, offsets: Tensor, target: Tensor, log_likelihood: LogLikelihood
) -> Tensor:
    """The ELBO up to its entropy at means [L, B, m], by offsets [S, B, m]: [L, B]."""
    z = (loc + offsets.unsqueeze(1)).flatten(0, 1)  # [S * L, B, m]
    objective = log_likelihood(z, target) + model.log_prior(z)
    return objective.unflatten(0, (len(offsets), len(loc))).mean(0)


def _step(
    model: VAE,
    loc: Tensor,
    variance: Tensor,
    offsets: Tensor,
    target: Tensor,
    search: LogLikelihood,
) -> Tensor:
    with torch.enable_grad():
        start = loc.detach().requires_grad_()
        here = _objective(model, start.unsqueeze(0), offsets, target, _by_model(model))
        (gradient,) = torch.autograd.grad(here.sum(), start)
    with torch.no_grad():
        lengths = _lengths(loc.device, loc.dtype)
        tried = loc + lengths * (variance * gradient)
        found = _objective(model, tried, offsets, target, search)
        # A step into the void is not taken.
        best, index = found.nan_to_num(nan=-torch.inf).max(0)
        chosen = tried.gather(0, index.view(1, -1, 1).expand(1, *loc.shape)).squeeze(0)
        return torch.where((best > here.squeeze(0)).unsqueeze(-1), chosen, loc)
