"""From scores to decisions: how often would an inlier score as high?"""

from __future__ import annotations

import torch
from torch import Tensor

from lipvae._validate import check_tensor, describe


def p_values(scores: Tensor, inliers: Tensor) -> Tensor:
    r"""Conformal p-values of scores, from the scores of inliers that the model has not seen.

    .. math:: p(s) = \frac{1 + \#\{i : s_i \ge s\}}{n + 1}

    If an input is drawn as the n inliers were, P(p <= alpha) <= alpha for every alpha, whatever the
    model and the score. So ``p_values(...) <= 0.01`` flags at most one inlier in a hundred, on
    average over choices of the n; no p-value is below 1 / (n + 1). Training images will not do:
    their scores are too low.

    Args:
        scores: of any shape; higher is more out-of-distribution.
        inliers: [n], the same score of held-out inliers.

    Returns:
        float64, of the shape and on the device of `scores`, in (0, 1].

    Raises:
        TypeError: if one is not a floating-point tensor.
        ValueError: for no inliers, NaN, or another device.

    Source: Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World"; Laxhammar &
    Falkman 2011, for anomalies.

    Example:
        >>> import torch
        >>> inliers = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> p_values(torch.tensor([0.0, 3.0, 9.0]), inliers)
        tensor([1.0000, 0.6000, 0.2000], dtype=torch.float64)
    """
    check_tensor("scores", scores)
    check_tensor("inliers", inliers, dim=1)
    if len(inliers) == 0:
        raise ValueError(f"inliers must hold at least one score, got {describe(inliers)}")
    if scores.device != inliers.device:
        raise ValueError(f"inliers must be on {scores.device}, got {describe(inliers)}")
    for name, values in (("scores", scores), ("inliers", inliers)):
        if values.isnan().any():
            raise ValueError(f"{name} must not be NaN")
    ordered = inliers.double().sort().values
    below = torch.searchsorted(ordered, scores.double().contiguous())
    return (1 + len(inliers) - below).double() / (len(inliers) + 1)
