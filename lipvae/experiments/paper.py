"""Figures that the paper printed, as far as they are known here; what is not is absent.

Glazunov & Zarras 2023, Tables 1 and 2: AUROC, AUPRC and FPR80 in percent.
"""

from __future__ import annotations

from typing import Literal

Positive = Literal["inliers", "outliers"]

METRICS = ("auroc", "auprc", "fpr80")

# (row, inliers, outliers) -> AUROC, AUPRC, FPR80. AUPRC and FPR80 are of the row's positive class.
TABLE_2: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("lipschitz/hole_indicator", "fashion-mnist", "mnist"): (99.69, 99.65, 0.28),
    ("lipschitz/stds_of_lls", "fashion-mnist", "mnist"): (99.21, 99.16, 0.84),
    ("bayesian/waic", "fashion-mnist", "mnist"): (59.53, 59.35, 71.88),
    ("bayesian/disagreement", "fashion-mnist", "mnist"): (96.44, 97.22, 1.11),
    ("bayesian/entropy", "fashion-mnist", "mnist"): (97.97, 98.43, 0.19),
    ("lipschitz/hole_indicator", "mnist", "fashion-mnist"): (99.87, 99.87, 0.00),
}

TABLE_1: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("sphere-m=3/hole_indicator", "mnist-01", "mnist-23456789"): (89.05, 99.38, 16.1),
    ("sphere-m=3/hole_indicator", "mnist-01", "fashion-mnist"): (94.54, 99.01, 5.60),
}


def table_1(row: str, inliers: str, outliers: str) -> dict[str, float] | None:
    """The paper's AUROC, AUPRC and FPR80 on the sphere, in percent; None if not known."""
    found = TABLE_1.get((row, inliers, outliers))
    return None if found is None else dict(zip(METRICS, found, strict=True))


def table_2(row: str, inliers: str, outliers: str) -> dict[str, float] | None:
    """The paper's AUROC, AUPRC and FPR80 of a row and a pair, in percent; None if not known.

    Example:
        >>> table_2("bayesian/waic", "fashion-mnist", "mnist")
        {'auroc': 59.53, 'auprc': 59.35, 'fpr80': 71.88}
    """
    found = TABLE_2.get((row, inliers, outliers))
    return None if found is None else dict(zip(METRICS, found, strict=True))
