"""Scores of likelihood: how improbable the model finds an input, equation (6)."""

from __future__ import annotations

from torch import Tensor

from lipvae.scores._score import Score
from lipvae.statistics import ImportanceStatistics


def is_log_likelihood(statistics: ImportanceStatistics) -> Tensor:
    r"""Negated IS log-likelihood, :math:`\log K - \mathrm{logsumexp}_k \log w_k`.

    The importance-sampled estimate of :math:`-\log p(x)`, in nats. Paper's orientation: the
    log-likelihood, higher for inliers; negated here.

    Source: Burda, Grosse & Salakhutdinov 2016, equation 8; Glazunov & Zarras 2023, section 4.1.
    """
    return -statistics.is_log_likelihood


def elbo(statistics: ImportanceStatistics) -> Tensor:
    r"""Negated evidence lower bound, :math:`-\mathrm{mean}_k \log w_k`, in nats.

    Paper's orientation: the bound, higher for inliers; negated here.

    Source: Kingma & Welling 2014, equation 2.
    """
    return -statistics.elbo


def log_likelihood(statistics: ImportanceStatistics) -> Tensor:
    r"""Negated mean log-likelihood of the samples, :math:`-\mathrm{mean}_k \log p(x|z_k)`.

    The reconstruction error, in nats. Paper's orientation: the log-likelihood, higher for
    inliers; negated here.
    """
    return -statistics.log_likelihood_mean


def kl(statistics: ImportanceStatistics) -> Tensor:
    r"""Divergence of posterior and prior, :math:`\mathrm{mean}_k \log q(z_k|x) - \log p(z_k)`.

    A Monte Carlo estimate, in nats. Higher for inputs whose code lies far from the prior; kept.
    In a compact latent space outliers may fall near the origin, and the order then turns round.
    """
    return statistics.kl


SCORES = (
    Score("is_log_likelihood", "IS log-likelihood", is_log_likelihood, "inlier"),
    Score("elbo", "ELBO", elbo, "inlier"),
    Score("log_likelihood", "Log-likelihood", log_likelihood, "inlier"),
    Score("kl", "KL", kl, "outlier"),
)
