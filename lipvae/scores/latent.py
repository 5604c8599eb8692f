"""Hole scores of earlier work, which look at where an input lands in the latent space: (7)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipvae.scores._evidence import Evidence
from lipvae.scores._score import Score

# Elements of the largest array that is made at once, 32 MB in double.
_ELEMENTS = 1 << 22


def lipschitz_ratio(x: Tensor, f_x: Tensor, references: Tensor, f_references: Tensor) -> Tensor:
    r"""d(f(x), f(r)) / d(x, r) with Euclidean distances and r the nearest reference to x.

    References that equal x are passed over; where there is no other, the ratio is 0.

    Args:
        x: [B, n].
        f_x: [B, m].
        references: [R, n], R >= 1.
        f_references: [R, m].

    Returns:
        float64 [B].

    Example:
        >>> r = torch.tensor([[0.0], [10.0]])
        >>> lipschitz_ratio(torch.tensor([[2.0]]), torch.tensor([[3.0]]), r, r)
        tensor([1.5000], dtype=torch.float64)
    """
    parts = []
    f_references = f_references.double()
    rows = max(1, _ELEMENTS // len(references))
    for part, f_part in zip(x.split(rows), f_x.double().split(rows), strict=True):
        # Not by products, whose rounding would depend on the batch.
        distance = torch.cdist(
            part.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        distance[distance == 0] = math.inf
        nearest, index = distance.min(1)
        parts.append((f_part - f_references[index]).norm(dim=1) / nearest)
    return torch.cat(parts)


def aggregated_log_density(z: Tensor, posterior: Any) -> Tensor:
    r"""log of the aggregated posterior, :math:`\log \frac1R \sum_r q(z | x_r)`.

    Args:
        z: [B, m], float64.
        posterior: q(z | x_r) of the R references.

    Returns:
        float64 [B].

    Example:
        >>> from lipvae.models import NormalPosterior
        >>> q = NormalPosterior(torch.zeros(5, 1).double(), torch.zeros(5, 1).double())
        >>> aggregated_log_density(torch.zeros(1, 1).double(), q)
        tensor([-0.9189], dtype=torch.float64)
    """
    references, m = posterior.loc.shape
    rows = max(1, _ELEMENTS // (references * m))
    parts = [torch.logsumexp(posterior.log_prob(p.unsqueeze(1)), 1) for p in z.split(rows)]
    return torch.cat(parts) - math.log(references)


def f_lip(evidence: Evidence) -> Tensor:
    r"""F_Lip: :math:`d(f(x), f(r)) / d(x, r)`, f the encoder's mean, r the nearest training image.

    A large ratio is a jump of the encoder, taken for a hole by earlier work. Distances are
    Euclidean, and r is sought among the calibration's images. Orientation: higher for holes;
    kept. A Lipschitz encoder bounds it, and inputs far from every training image have a small
    one, so it may well come out below chance.

    Source: Falorsi et al. 2018, section 4; Li, Peng & Lin 2021.
    """
    known = evidence.calibration
    return lipschitz_ratio(
        evidence.images.flatten(1),
        evidence.posterior.loc,
        known.images.flatten(1),
        known.posterior.loc,
    )


def f_agg(evidence: Evidence) -> Tensor:
    r"""F_Agg: :math:`-\log \frac1R \sum_r q(z | x_r)` at z = the mean of q(z | x), in nats.

    The negated log-density of the aggregated posterior, over the calibration's R training images.
    Orientation: higher for holes; kept.

    Source: Xu, Cheung & Cao 2020; Li, Peng & Lin 2021.
    """
    return -aggregated_log_density(evidence.posterior.loc, evidence.calibration.posterior)


SCORES = (
    Score("f_lip", "F_Lip", f_lip, "outlier", source="evidence", calibrated=True),
    Score("f_agg", "F_Agg", f_agg, "outlier", source="evidence", calibrated=True),
)
