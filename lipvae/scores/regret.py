"""Likelihood regret: what an input would gain from a posterior of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipvae.models import VAE, NormalPosterior
from lipvae.noise import standard_normal
from lipvae.scores._evidence import Evidence
from lipvae.scores._score import Score

# Images that are optimised side by side; the last block is padded, so all have this size.
BLOCK = 64
# Noise of a Philox stream that no other score draws from.
_STREAM = 0x4C52


@dataclass(frozen=True)
class RegretSettings:
    """How q(z | x) is optimised, by Adam from where the encoder put it.

    Attributes:
        steps: of Adam.
        lr: its learning rate, of the means and the log-variances.
        samples: of z in the ELBO, the same in every step.
    """

    steps: int = 100
    lr: float = 0.05
    samples: int = 8


def regret(model: VAE, x: Tensor, seed: int = 0, settings: RegretSettings | None = None) -> Tensor:
    r"""max over q of ELBO(x; q) minus ELBO(x; encoder), with fixed noise.

    The optimum is the best iterate, the start among them, so a regret is never negative. Blocks
    of images have a fixed size; rows of a block do not mix, but a matrix product may round the
    last bits of a row by its place.

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
    noise = standard_normal(seed, settings.samples, model.latent_dim, stream=_STREAM)
    noise = noise.unsqueeze(1).to(x)
    parts = []
    for part in x.split(BLOCK):
        short = BLOCK - len(part)
        block = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
        parts.append(_regret(model, block, noise, settings)[: len(part)])
    return torch.cat(parts)


def _regret(model: VAE, x: Tensor, noise: Tensor, settings: RegretSettings) -> Tensor:
    with torch.no_grad():
        start = model.encode(x)
    if not isinstance(start, NormalPosterior):
        raise TypeError(f"likelihood_regret needs a normal posterior, got {type(start).__name__}")
    parameters = [start.loc.clone().requires_grad_(), start.log_variance.clone().requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr)
    first = best = None
    with torch.enable_grad():
        for step in range(settings.steps + 1):
            posterior = NormalPosterior(*parameters)
            z = posterior.rsample(noise)
            elbo = model.log_likelihood(x, z).double().mean(0) - posterior.kl().double()
            value = elbo.detach()
            first = value if first is None else first
            best = value if best is None else torch.maximum(best, value)
            if step == settings.steps:
                break
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(-elbo.sum(), parameters), strict=True
            ):
                parameter.grad = gradient
            optimizer.step()
    assert first is not None
    assert best is not None
    return best - first


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
