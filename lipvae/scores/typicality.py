"""Typicality: how far an input's likelihood is from that of training images, equation (7)."""

from __future__ import annotations

from torch import Tensor

from lipvae.scores._evidence import Evidence
from lipvae.scores._score import Score


def typicality(evidence: Evidence) -> Tensor:
    r"""Typicality test with one input: :math:`|-\log p(x) - \hat H_{train}|`, in nats.

    :math:`\hat H` is the mean of :math:`-\log p` over training images, an estimate of the model's
    entropy; both are importance-sampled with the same K. Paper's orientation: higher for outliers;
    kept.

    Source: Nalisnick et al. 2019, section 3, with M = 1.
    """
    return (-evidence.statistics.is_log_likelihood - evidence.calibration.entropy).abs()


SCORES = (
    Score("typicality", "Typicality", typicality, "outlier", source="evidence", calibrated=True),
)
