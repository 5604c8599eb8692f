"""Variational autoencoders."""

from lipvae.models.bayesian import BayesianVAE
from lipvae.models.ensemble import Ensemble
from lipvae.models.lipschitz import LipschitzVAE, default_lipschitz
from lipvae.models.posterior import NormalPosterior
from lipvae.models.vae import VAE

# What `lipvae.load` may build: a file names a class by its key here and by nothing else.
MODELS: dict[str, type[VAE]] = {
    "VAE": VAE,
    "LipschitzVAE": LipschitzVAE,
    "BayesianVAE": BayesianVAE,
}

__all__ = [
    "MODELS",
    "VAE",
    "BayesianVAE",
    "Ensemble",
    "LipschitzVAE",
    "NormalPosterior",
    "default_lipschitz",
]
