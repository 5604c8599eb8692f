"""Variational autoencoders."""

from lipvae.models.bayesian import BayesianVAE
from lipvae.models.ensemble import Ensemble
from lipvae.models.hyperspherical import HypersphericalVAE
from lipvae.models.lipschitz import LipschitzVAE, default_lipschitz
from lipvae.models.posterior import NormalPosterior, VonMisesFisherPosterior
from lipvae.models.vae import VAE

# What `lipvae.load` may build: a file names a class by its key here and by nothing else.
MODELS: dict[str, type[VAE]] = {
    "VAE": VAE,
    "LipschitzVAE": LipschitzVAE,
    "BayesianVAE": BayesianVAE,
    "HypersphericalVAE": HypersphericalVAE,
}

__all__ = [
    "MODELS",
    "VAE",
    "BayesianVAE",
    "Ensemble",
    "HypersphericalVAE",
    "LipschitzVAE",
    "NormalPosterior",
    "VonMisesFisherPosterior",
    "default_lipschitz",
]
