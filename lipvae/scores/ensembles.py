"""Scores of an ensemble: how much models theta_s disagree on an input, equation (7).

All but the means take log p(x | theta_s), float64 [S, B], importance-sampled by equation (6). The
weights are v_s = p(x | theta_s) / sum_r p(x | theta_r), as under a flat prior over the draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipvae.scores._score import Score


def waic(log_likelihood: Tensor) -> Tensor:
    r"""Negated WAIC, :math:`\mathrm{var}_s - \mathrm{mean}_s` of :math:`\log p(x|\theta_s)`.

    The variance is the sample variance (ddof 1). Paper's orientation: WAIC, higher for inliers;
    negated here.

    Source: Watanabe 2010; Choi, Jang & Alemi 2018, section 3.

    Example:
        >>> waic(torch.tensor([[-1.0], [-3.0]], dtype=torch.float64))
        tensor([4.], dtype=torch.float64)
    """
    return log_likelihood.var(0) - log_likelihood.mean(0)


def disagreement(log_likelihood: Tensor) -> Tensor:
    r"""Negated disagreement score, :math:`-1 / \sum_s v_s^2`, in [-S, -1].

    An effective number of models: S where all find x equally likely, 1 where one of them alone
    explains it. Paper's orientation: higher for inliers; negated here.

    Source: Daxberger & Hernandez-Lobato 2019, section 3.1; Glazunov & Zarras 2022.

    Example:
        >>> disagreement(torch.zeros(4, 1, dtype=torch.float64))
        tensor([-4.], dtype=torch.float64)
    """
    return -torch.exp(-torch.logsumexp(2 * _log_weights(log_likelihood), 0))


def entropy(log_likelihood: Tensor) -> Tensor:
    r"""Negated entropy of the models' weights, :math:`\sum_s v_s \log v_s`, in [-log S, 0].

    Paper's orientation: the entropy, higher for inliers; negated here.

    Source: Glazunov & Zarras 2022, section 4.

    Example:
        >>> entropy(torch.zeros(4, 1, dtype=torch.float64))
        tensor([-1.3863], dtype=torch.float64)
    """
    log_weights = _log_weights(log_likelihood)
    # 0 log 0 = 0, also where the weight underflows.
    return torch.special.xlogy(log_weights.exp(), log_weights.exp()).sum(0)


def ensemble_stds_of_lls(log_likelihood: Tensor) -> Tensor:
    r"""Stds of LLs over the ensemble, :math:`\mathrm{std}_s \log p(x|\theta_s)` (ddof 1).

    Paper's orientation: higher for outliers; kept.

    Source: Glazunov & Zarras 2022, section 4.

    Example:
        >>> ensemble_stds_of_lls(torch.tensor([[-1.0], [-3.0]], dtype=torch.float64))
        tensor([1.4142], dtype=torch.float64)
    """
    return log_likelihood.std(0)


def ensemble_log_likelihood(log_likelihood: Tensor) -> Tensor:
    r"""Negated marginal likelihood, :math:`\log S - \mathrm{logsumexp}_s \log p(x|\theta_s)`.

    Paper's orientation: the log-likelihood, higher for inliers; negated here.

    Source: Glazunov & Zarras 2022, section 4.

    Example:
        >>> ensemble_log_likelihood(torch.full((3, 1), -2.0, dtype=torch.float64))
        tensor([2.], dtype=torch.float64)
    """
    return math.log(len(log_likelihood)) - torch.logsumexp(log_likelihood, 0)


def mean_hole_indicator(hole_indicator: Tensor) -> Tensor:
    r"""The models' mean hole indicator, :math:`\mathrm{mean}_s\,\mathrm{std}_k \log p(x|z_k)`.

    An encoder's mistakes are its own: inliers that one model takes for outliers others do not.
    docs/results.md has what that gains. Higher for outliers; kept.

    Args:
        hole_indicator: of each model, float64 [S, B].

    Source: the hole indicator of Glazunov & Zarras 2023, section 4.1, averaged as a deep ensemble
    averages predictions (Lakshminarayanan, Pritzel & Blundell 2017). Not in the paper.

    Example:
        >>> mean_hole_indicator(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
        tensor([2.], dtype=torch.float64)
    """
    return hole_indicator.mean(0)


def mean_stds_of_lls(stds_of_lls: Tensor) -> Tensor:
    r"""The models' mean stds of LLs, :math:`\mathrm{mean}_s\,\mathrm{std}_k \log w_k`.

    Over the samples of each model, unlike :func:`ensemble_stds_of_lls`, which is over the models.
    Higher for outliers; kept.

    Args:
        stds_of_lls: of each model, float64 [S, B].

    Source: as of :func:`mean_hole_indicator`.

    Example:
        >>> mean_stds_of_lls(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
        tensor([2.], dtype=torch.float64)
    """
    return stds_of_lls.mean(0)


def _log_weights(log_likelihood: Tensor) -> Tensor:
    return torch.log_softmax(log_likelihood, 0)


SCORES = (
    Score("waic", "WAIC", waic, "inlier", source="draws"),
    Score("disagreement", "Disagreement", disagreement, "inlier", source="draws"),
    Score("entropy", "Entropy", entropy, "inlier", source="draws"),
    Score(
        "ensemble_stds_of_lls",
        "Stds of LLs (ensemble)",
        ensemble_stds_of_lls,
        "outlier",
        source="draws",
    ),
    Score(
        "ensemble_log_likelihood",
        "Log-likelihood (ensemble)",
        ensemble_log_likelihood,
        "inlier",
        source="draws",
    ),
    Score(
        "mean_hole_indicator",
        "Mean hole indicator",
        mean_hole_indicator,
        "outlier",
        min_samples=2,
        source="draws",
        of="hole_indicator",
    ),
    Score(
        "mean_stds_of_lls",
        "Mean stds of LLs",
        mean_stds_of_lls,
        "outlier",
        min_samples=2,
        source="draws",
        of="stds_of_lls",
    ),
)
