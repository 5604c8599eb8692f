"""Variational autoencoders."""

from lipvae.models.lipschitz import LipschitzVAE, default_lipschitz
from lipvae.models.posterior import NormalPosterior
from lipvae.models.vae import VAE

__all__ = ["VAE", "LipschitzVAE", "NormalPosterior", "default_lipschitz"]
