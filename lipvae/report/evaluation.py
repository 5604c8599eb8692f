"""Scores of an inlier set and of outlier sets, with the metrics of each pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipvae.metrics import OODMetrics, ood_metrics

Scores = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well each score tells the outlier sets from the inliers.

    Attributes:
        inlier_name: the inlier set.
        inliers: its scores, [N] each.
        outliers: the scores of each outlier set by its name.
        metrics: by outlier set, then by score.
    """

    inlier_name: str
    inliers: Scores
    outliers: Mapping[str, Scores]
    metrics: Mapping[str, Mapping[str, OODMetrics]]

    def to_dict(self) -> dict[str, Any]:
        """Counts and metrics for JSON: fractions in [0, 1]."""
        return {
            "inliers": {"name": self.inlier_name, "count": _count(self.inliers)},
            "outliers": [
                {
                    "name": name,
                    "count": _count(scores),
                    "scores": {
                        score: {
                            "auroc": found.auroc,
                            "auprc": found.auprc,
                            "auprc_inlier": found.auprc_inlier,
                            "fpr80": found.fpr80,
                        }
                        for score, found in self.metrics[name].items()
                    },
                }
                for name, scores in self.outliers.items()
            ],
        }


def evaluate(inlier_name: str, inliers: Scores, outliers: Mapping[str, Scores]) -> Evaluation:
    """Compares every outlier set with the inliers, score by score.

    Args:
        inlier_name: what to call the inliers.
        inliers: [N] for each score, higher = more out-of-distribution.
        outliers: the same scores, [M] each, by the outlier set's name.

    Raises:
        ValueError: if a set lacks a score, or for scores that `ood_metrics` refuses.

    Example:
        >>> import torch
        >>> found = evaluate("in", {"elbo": torch.zeros(5)}, {"out": {"elbo": torch.ones(5)}})
        >>> found.metrics["out"]["elbo"].auroc
        1.0
    """
    for name, scores in outliers.items():
        if scores.keys() != inliers.keys():
            raise ValueError(
                f"outliers {name!r} must have the scores of the inliers, {', '.join(inliers)}, "
                f"got {', '.join(scores)}"
            )
    return Evaluation(
        inlier_name,
        inliers,
        outliers,
        {
            name: {score: ood_metrics(inliers[score], scores[score]) for score in inliers}
            for name, scores in outliers.items()
        },
    )


def _count(scores: Scores) -> int:
    return len(next(iter(scores.values())))
