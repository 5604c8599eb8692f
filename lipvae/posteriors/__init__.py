"""Ways to draw an ensemble of VAEs besides Bayes by Backprop: training many, SWAG, SGHMC."""

from lipvae.posteriors.independent import fit_ensemble
from lipvae.posteriors.sghmc import fit_sghmc
from lipvae.posteriors.swag import SWAG, fit_swag

__all__ = ["SWAG", "fit_ensemble", "fit_sghmc", "fit_swag"]
