"""Scores of latent holes: how much the samples of one input disagree, equation (6)."""

from __future__ import annotations

from torch import Tensor

from lipvae.scores._score import Score
from lipvae.statistics import ImportanceStatistics


def hole_indicator(statistics: ImportanceStatistics) -> Tensor:
    r"""Hole indicator: :math:`\mathrm{std}_k \log p(x|z_k)`, sample standard deviation (ddof 1).

    Where the posterior of an input spreads over vacant holes of the latent space, the decoder's
    reconstructions differ and so do their log-likelihoods. Paper's orientation: higher for
    outliers; kept.

    Source: Glazunov & Zarras 2023, section 4.1.
    """
    return statistics.hole_indicator


def stds_of_lls(statistics: ImportanceStatistics) -> Tensor:
    r"""Stds of LLs: :math:`\mathrm{std}_k \log w_k`, sample standard deviation (ddof 1).

    The hole indicator with the prior and the posterior density inside. Paper's orientation:
    higher for outliers; kept.

    Source: Glazunov & Zarras 2023, section 4.1.
    """
    return statistics.stds_of_lls


SCORES = (
    Score("hole_indicator", "Hole indicator", hole_indicator, "outlier", min_samples=2),
    Score("stds_of_lls", "Stds of LLs", stds_of_lls, "outlier", min_samples=2),
)
