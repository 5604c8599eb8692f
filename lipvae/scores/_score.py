"""What a score is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lipvae.statistics import ImportanceStatistics


@dataclass(frozen=True)
class Score:
    """A per-input score, oriented so that higher means more out-of-distribution.

    Attributes:
        name: the key under which :class:`lipvae.Scorer` returns it.
        title: for tables and plots.
        statistic: from the statistics over k to the score, float64 [B].
        raw_orientation: what a high value of the statistic itself means, before `statistic`
            turned its sign: "outlier" (the sign is kept) or "inlier" (it is negated).
        min_samples: the smallest K for which the score is defined.
    """

    name: str
    title: str
    statistic: Callable[[ImportanceStatistics], Tensor]
    raw_orientation: Literal["outlier", "inlier"]
    min_samples: int = 1
