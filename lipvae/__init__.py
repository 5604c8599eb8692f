"""Out-of-distribution detection by the latent holes of compact variational autoencoders.

Implements Glazunov & Zarras, "Vacant Holes for Unsupervised Detection of the Outliers in Compact
Latent Representation" (UAI 2023).
"""

from pathlib import Path as _Path

import torch  # noqa: F401  (first: lipvae._C shares its OpenMP runtime)

from lipvae import data, functional, likelihoods, nn
from lipvae._backend import backend
from lipvae._backend import warn_without_extension as _warn_without_extension
from lipvae.conformal import p_values
from lipvae.models import VAE, BayesianVAE, Ensemble, HypersphericalVAE, LipschitzVAE
from lipvae.persistence import load, save
from lipvae.scoring import Scorer
from lipvae.training import DivergenceError, History, fit

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "BayesianVAE",
    "DivergenceError",
    "Ensemble",
    "History",
    "HypersphericalVAE",
    "LipschitzVAE",
    "Scorer",
    "backend",
    "data",
    "fit",
    "functional",
    "likelihoods",
    "load",
    "nn",
    "p_values",
    "save",
]

_warn_without_extension(_Path(__file__).parent)
