"""How well a score tells outliers from inliers: design, rule (9).

Every metric here depends on the order of the scores alone. So they are replaced by their ranks,
with equal scores sharing one, before anything is computed: raw log-likelihoods of any size,
infinities and ties come through exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from lipvae._validate import check_count

Scores = Tensor | npt.ArrayLike
Floats = npt.NDArray[np.float64]

# FPR80's target TPR, 4/5, as a fraction: distances to it are compared in whole numbers.
_TARGET_UP, _TARGET_DOWN = 4, 5
# Most elements of one array while resampling: about 32 MB of float64.
_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class OODMetrics:
    """Detection metrics, as fractions in [0, 1].

    Attributes:
        auroc: area under the ROC curve: the probability that an outlier scores above an inlier,
            ties counting half.
        auprc: average precision with the outliers as the positive class.
        auprc_inlier: average precision with the inliers as the positive class, by the negated
            scores. The paper reports this one for WAIC, disagreement and entropy.
        fpr80: the fraction of inliers flagged where about 80% of the outliers are; lower is better.
    """

    auroc: float
    auprc: float
    auprc_inlier: float
    fpr80: float

    def percent(self) -> dict[str, float]:
        """Return the metrics by name, in percent."""
        values = (self.auroc, self.auprc, self.auprc_inlier, self.fpr80)
        names = ("auroc", "auprc", "auprc_inlier", "fpr80")
        return {name: 100 * value for name, value in zip(names, values, strict=True)}

    def __str__(self) -> str:
        p = self.percent()
        return (
            f"AUROC {p['auroc']:.2f}%, AUPRC {p['auprc']:.2f}% (outliers positive) / "
            f"{p['auprc_inlier']:.2f}% (inliers positive), FPR80 {p['fpr80']:.2f}%"
        )


def ood_metrics(inlier_scores: Scores, outlier_scores: Scores) -> OODMetrics:
    """Return AUROC, both AUPRCs and FPR80 of a score that is higher for outliers.

    Design, rule (9): AUROC and AUPRC are scikit-learn's ``roc_auc_score`` and
    ``average_precision_score``. FPR80 is the FPR at the observed threshold whose TPR is nearest to
    0.80, a threshold t flagging every score ≥ t. Where several thresholds are equally near, the
    lowest of them counts, which has the largest FPR. No point of the ROC curve is dropped, and the
    threshold above all scores is not an observed one. By that rule fewer than three outliers, or
    outliers that all tie, give an FPR80 of 1 however well they are told apart: no threshold has a
    TPR near 0.80, and the lowest with TPR 1 flags everything.

    Args:
        inlier_scores: [N] scores of inliers, N ≥ 1, higher = more out-of-distribution: a tensor
            (of any device), an array or a list of real numbers. ±inf are scores like any other.
        outlier_scores: [M] scores of outliers, M ≥ 1.

    Returns:
        OODMetrics: fractions in [0, 1]. Scores that tell nothing give an AUROC of 1/2.

    Raises:
        ValueError: an argument is empty, is not one-dimensional or has a NaN.
        TypeError: an argument is not made of real numbers.

    Source: the metrics of Glazunov & Zarras (UAI 2023), section of experiments.

    Example:
        >>> from lipvae.metrics import ood_metrics
        >>> ood_metrics([-1e30, 2.0, 3.0], [3.0, 1e30]).auroc
        0.9166666666666667
    """
    inliers, outliers = _ranks(inlier_scores, outlier_scores)
    scores = np.concatenate([inliers, outliers])
    is_outlier = np.repeat([0, 1], [inliers.size, outliers.size])
    # The curve's first point is the threshold above all scores.
    fpr, tpr, _ = roc_curve(is_outlier, scores, drop_intermediate=False)
    flagged = np.rint(tpr[1:] * outliers.size).astype(np.int64)
    distance = np.abs(_TARGET_DOWN * flagged - _TARGET_UP * outliers.size)
    nearest = np.flatnonzero(distance == distance.min())[-1]
    return OODMetrics(
        auroc=float(roc_auc_score(is_outlier, scores)),
        auprc=float(average_precision_score(is_outlier, scores)),
        auprc_inlier=float(average_precision_score(1 - is_outlier, -scores)),
        fpr80=float(fpr[1:][nearest]),
    )


def ood_metrics_interval(
    inlier_scores: Scores,
    outlier_scores: Scores,
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[OODMetrics, OODMetrics]:
    """Return a bootstrap interval for each metric of `ood_metrics`: its lower and upper ends.

    The percentile bootstrap: inliers and outliers are resampled with replacement, each within its
    own set, and the ends are quantiles (1 ∓ confidence)/2 of the resampled metrics. It speaks of
    the choice of test images only, not of training, nor of the score's own randomness.

    Args:
        inlier_scores: [N], as in `ood_metrics`.
        outlier_scores: [M], as in `ood_metrics`.
        confidence: coverage that is aimed at, in (0, 1).
        n_resamples: number of resamples, at least 1.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: as `ood_metrics`, or `confidence`, `n_resamples` or `seed` is out of range.
        TypeError: as `ood_metrics`.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Example:
        >>> from lipvae.metrics import ood_metrics_interval
        >>> low, high = ood_metrics_interval([0.1, 0.2, 0.3, 0.6], [0.5, 0.8, 0.9])
        >>> low.auroc <= high.auroc
        True
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    check_count("n_resamples", n_resamples)
    check_count("seed", seed, minimum=0)
    inliers, outliers = _ranks(inlier_scores, outlier_scores)
    levels = int(max(inliers.max(), outliers.max())) + 1
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // max(levels, inliers.size, outliers.size))
    parts = []
    for start in range(0, n_resamples, chunk):
        rows = min(chunk, n_resamples - start)
        parts.append(
            _metrics_of_counts(
                _resampled_counts(inliers, levels, rows, generator),
                _resampled_counts(outliers, levels, rows, generator),
            )
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail], axis=0)
    return OODMetrics(*low.tolist()), OODMetrics(*high.tolist())


def _ranks(
    inlier_scores: Scores, outlier_scores: Scores
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the scores' dense ranks among all scores: 0 for the lowest, ties alike."""
    inliers = _as_array("inlier_scores", inlier_scores)
    outliers = _as_array("outlier_scores", outlier_scores)
    _, ranks = np.unique(np.concatenate([inliers, outliers]), return_inverse=True)
    return ranks[: inliers.size], ranks[inliers.size :]


def _as_array(name: str, scores: Scores) -> Floats:
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu()
        if scores.dtype == torch.bfloat16:  # NumPy has no such type; float32 holds it exactly
            scores = scores.float()
        array = scores.numpy()
    else:
        array = np.asarray(scores)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got {array.dtype}")
    values = array.astype(np.float64)
    bad = int(np.isnan(values).sum())
    if bad:
        raise ValueError(f"{name} must not have NaN, got {bad} among {values.size} values")
    return values


def _resampled_counts(
    ranks: npt.NDArray[np.int64], levels: int, rows: int, generator: np.random.Generator
) -> Floats:
    """Return [rows, levels]: how often each rank occurs in each resample, highest rank first."""
    drawn = ranks[generator.integers(0, ranks.size, (rows, ranks.size))]
    index = (levels - 1 - drawn) + levels * np.arange(rows)[:, None]
    counts = np.bincount(index.reshape(-1), minlength=rows * levels)
    return counts.reshape(rows, levels).astype(np.float64)


def _metrics_of_counts(inliers: Floats, outliers: Floats) -> Floats:
    """Return [rows, 4], the metrics in OODMetrics' order, from counts [rows, levels].

    Levels run from the highest score down. A level that a resample lacks repeats the point of the
    curve before it, or adds nothing to a sum, so it need not be taken out.
    """
    false, true = inliers.cumsum(axis=1), outliers.cumsum(axis=1)
    n, m = false[:, -1:], true[:, -1:]
    below = n - false
    auroc = (outliers * (below + inliers / 2)).sum(axis=1, keepdims=True) / (n * m)
    auprc = _average_precision(outliers, true, true + false)
    # With the inliers positive, flagging starts from the lowest score.
    auprc_inlier = _average_precision(
        inliers, below + inliers, below + inliers + m - true + outliers
    )
    distance = np.abs(_TARGET_DOWN * true - _TARGET_UP * m)
    distance[(true + false) == 0] = np.inf  # above all scores: not an observed threshold
    last = distance.shape[1] - 1 - distance[:, ::-1].argmin(axis=1)
    fpr80 = np.take_along_axis(false, last[:, None], axis=1) / n
    return np.concatenate([auroc, auprc, auprc_inlier, fpr80], axis=1)


def _average_precision(positives: Floats, true: Floats, flagged: Floats) -> Floats:
    """Return Σ (recall step × precision) [rows, 1]; nothing flagged has no step."""
    precision = true / np.maximum(flagged, 1)
    return (positives * precision).sum(axis=1, keepdims=True) / positives.sum(axis=1, keepdims=True)
