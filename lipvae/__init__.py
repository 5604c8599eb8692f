"""Out-of-distribution detection by the latent holes of compact variational autoencoders.

Implements Glazunov & Zarras, "Vacant Holes for Unsupervised Detection of the Outliers in Compact
Latent Representation" (UAI 2023).
"""

import torch  # noqa: F401  (first: lipvae._C shares its OpenMP runtime)

from lipvae import functional
from lipvae._backend import backend

__version__ = "0.1.0"

__all__ = ["backend", "functional"]
