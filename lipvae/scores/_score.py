"""What a score is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

# What a score may be computed from: an attribute of `Evidence`, or the evidence as a whole.
Source = Literal["statistics", "draws", "images", "evidence"]


@dataclass(frozen=True)
class Score:
    """A per-input score, oriented so that higher means more out-of-distribution.

    Attributes:
        name: the key under which :class:`lipvae.Scorer` returns it.
        title: for tables and plots.
        statistic: from what `source` names to the score, float64 [B].
        raw_orientation: what a high value of the statistic itself means, before `statistic`
            turned its sign: "outlier" (the sign is kept) or "inlier" (it is negated).
        min_samples: the smallest K for which the score is defined.
        source: "statistics", those over k of one model; "draws", one of them over k for each
            model theta_s of an ensemble, float64 [S, B]; "images", the input alone; "evidence",
            several of these.
        of: for "draws": which one, an attribute of `lipvae.statistics.ImportanceStatistics`.
        calibrated: whether it needs :meth:`lipvae.Scorer.calibrate`.
        posterior: the family of q(z | x) that it is defined for; None for any.
    """

    name: str
    title: str
    statistic: Callable[[Any], Tensor]
    raw_orientation: Literal["outlier", "inlier"]
    min_samples: int = 1
    source: Source = "statistics"
    of: str = "is_log_likelihood"
    calibrated: bool = False
    posterior: str | None = None
