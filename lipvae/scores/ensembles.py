"""Scores of an ensemble: how much models theta_s disagree on an input, equation (7).

All take log p(x | theta_s), float64 [S, B], importance-sampled by equation (6). The weights are
v_s = p(x | theta_s) / sum_r p(x | theta_r), as under a flat prior over the draws.
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
)
