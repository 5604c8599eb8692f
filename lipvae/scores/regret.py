"""Likelihood regret: what an input would gain from a posterior of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipvae.models import VAE, NormalPosterior
from lipvae.noise import sobol_normal, standard_normal
from lipvae.scores._evidence import Evidence
from lipvae.scores._score import Score

# Images that are optimised side by side; the last block is padded, so all have this size.
BLOCK = 64
# Samples that judge both posteriors, once. They are evenly spread, and no step has seen them.
JUDGES = 64
# Noise of a Philox stream that no other score draws from.
_STREAM = 0x4C52


@dataclass(frozen=True)
class RegretSettings:
    """How q(z | x) is optimised, by Adam from where the encoder put it.

    Attributes:
        steps: of Adam.
        lr: its first learning rate, of the means and the log-variances; it falls linearly to 0.
        pairs: of antithetic samples of z in each step, drawn anew.
    """

    steps: int = 100
    lr: float = 0.05
    pairs: int = 4


def regret(model: VAE, x: Tensor, seed: int = 0, settings: RegretSettings | None = None) -> Tensor:
    r"""max over q of ELBO(x; q) minus ELBO(x; encoder).

    Each step has noise of its own, and noise that no step has seen judges both posteriors: a
    posterior that was fitted to a few fixed samples gains a lot on these and loses elsewhere. Where
    q has lost, the regret is 0, that of the encoder's posterior. Blocks of images have a fixed
    size; rows of a block do not mix, but a matrix product may round the last bits of a row by its
    place.

    Args:
        model: a VAE with normal posteriors, in evaluation mode.
        x: [B, C, H, W] in [0, 1].
        seed: of the noise.
        settings: of the optimisation.

    Returns:
        float64 [B], in nats.

    Raises:
        TypeError: if the model's posterior is not normal.

    Source: Xiao, Yan & Amit 2020, section 4, optimising q's own parameters.

    Example:
        >>> import lipvae
        >>> model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,)).eval()
        >>> found = regret(model, torch.rand(3, 1, 8, 8), settings=RegretSettings(steps=5))
        >>> found.shape, bool((found >= 0).all())
        (torch.Size([3]), True)
    """
    settings = RegretSettings() if settings is None else settings
    # Tensors made in inference mode take no part in a gradient; copies made outside it do.
    with torch.inference_mode(False):
        return _by_blocks(model, x.clone() if x.is_inference() else x, seed, settings)


def _by_blocks(model: VAE, x: Tensor, seed: int, settings: RegretSettings) -> Tensor:
    judges = sobol_normal(seed, JUDGES, model.latent_dim)
    drawn = standard_normal(
        seed, settings.steps * settings.pairs, model.latent_dim, stream=_STREAM
    ).unflatten(0, (settings.steps, settings.pairs))
    noise = torch.cat([drawn, -drawn], 1).unsqueeze(2).to(x), judges.unsqueeze(1).to(x)
    parts = []
    for part in x.split(BLOCK):
        short = BLOCK - len(part)
        block = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
        parts.append(_regret(model, block, *noise, settings.lr)[: len(part)])
    return torch.cat(parts)


def _elbo(model: VAE, x: Tensor, posterior: NormalPosterior, noise: Tensor) -> Tensor:
    """By samples of noise [S, 1, m]: float64 [B]."""
    log_likelihood = model.log_likelihood(x, posterior.rsample(noise))
    return log_likelihood.double().mean(0) - posterior.kl().double()


def _regret(model: VAE, x: Tensor, steps: Tensor, judges: Tensor, lr: float) -> Tensor:
    """By the noise of each step, [steps, S, 1, m], and that of both evaluations, [JUDGES, 1, m]."""
    with torch.no_grad():
        start = model.encode(x)
    if not isinstance(start, NormalPosterior):
        raise TypeError(f"likelihood_regret needs a normal posterior, got {type(start).__name__}")
    parameters = [start.loc.clone().requires_grad_(), start.log_variance.clone().requires_grad_()]
    posterior = NormalPosterior(*parameters)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / max(len(steps), 1))
    with torch.enable_grad():
        for noise in steps:
            loss = -_elbo(model, x, posterior, noise).sum()
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        gains = [
            _elbo(model, x, posterior, part) - _elbo(model, x, start, part)
            for part in judges.split(8)  # as many as a step decodes by default
        ]
    return torch.stack(gains).mean(0).clamp(min=0)


def likelihood_regret(evidence: Evidence) -> Tensor:
    r"""Likelihood regret, in nats: how much of its ELBO an input lost to the shared encoder.

    :math:`\max_q \mathrm{ELBO}(x; q) - \mathrm{ELBO}(x; q(z|x))`, the maximum over normal q by
    100 steps of Adam (:func:`regret`). Paper's orientation: higher for outliers; kept.

    Source: Xiao, Yan & Amit 2020, equation 6.
    """
    return regret(evidence.model, evidence.images, evidence.seed)


SCORES = (
    Score(
        "likelihood_regret",
        "Likelihood regret",
        likelihood_regret,
        "outlier",
        source="evidence",
        posterior="normal",
    ),
)
