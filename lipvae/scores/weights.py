"""Scores of the importance weights' quality, equation (6)."""

from __future__ import annotations

from torch import Tensor

from lipvae.scores._score import Score
from lipvae.statistics import ImportanceStatistics


def ess(statistics: ImportanceStatistics) -> Tensor:
    r"""Negated effective sample size, :math:`-(\sum_k w_k)^2 / \sum_k w_k^2`, in [-K, -1].

    The size is K where q(z|x) matches the true posterior and falls to 1 where a single sample
    carries all the weight. The encoder learnt to match the posterior of inliers, so a small size
    speaks for an outlier: negated here. The paper does not score it.

    Source: Kong 1992; Liu 2001, section 2.5.3.
    """
    return -statistics.ess


SCORES = (Score("ess", "ESS", ess, "inlier"),)
