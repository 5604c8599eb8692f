"""Whole scoring pipelines."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

import lipvae
from bench.harness import Skip


@torch.no_grad()
def eager_scores(
    model: lipvae.VAE, x: Tensor, num_samples: int, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The scores of equation (6) from logits [K, B, D] in memory, as one writes it first.

    The weights are the model's own; a Lipschitz encoder runs as it does in evaluation mode.
    """
    posterior = model.encode(x)
    scale = (0.5 * posterior.log_variance).exp()
    noise = torch.randn(num_samples, *posterior.loc.shape, generator=generator, device=x.device)
    z = posterior.loc + scale * noise
    logits = model.decoder(z.flatten(0, 1)).view(num_samples, len(x), -1)
    target = x.flatten(1).expand_as(logits)
    log_likelihood = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits, target, reduction="none"
    ).sum(-1)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_posterior = torch.distributions.Normal(posterior.loc, scale).log_prob(z).sum(-1)
    log_weight = (log_likelihood + log_prior - log_posterior).double()
    return {
        "hole_indicator": log_likelihood.double().std(0),
        "stds_of_lls": log_weight.std(0),
        "is_log_likelihood": math.log(num_samples) - torch.logsumexp(log_weight, 0),
        "elbo": -log_weight.mean(0),
        "log_likelihood": -log_likelihood.double().mean(0),
        "kl": (log_posterior - log_prior).double().mean(0),
        "ess": -1 / torch.softmax(log_weight, 0).square().sum(0),
    }


def pyod_vae(x: Tensor, latent_dim: int, hidden: tuple[int, ...]) -> Any:
    """PyOD's VAE of the same widths, fitted for one epoch; its score is a reconstruction error.

    Raises:
        Skip: if PyOD is not installed.
    """
    try:
        module = importlib.import_module("pyod.models.vae")
    except ImportError as error:
        raise Skip(f"PyOD is not installed ({error})") from error
    detector = module.VAE(
        epoch_num=1,
        batch_size=128,
        encoder_neuron_list=list(hidden),
        decoder_neuron_list=list(reversed(hidden)),
        latent_dim=latent_dim,
        preprocessing=False,
        device="cpu",
        verbose=0,
    )
    return detector.fit(x.flatten(1).numpy())
