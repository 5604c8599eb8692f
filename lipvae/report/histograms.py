"""Histograms of scores."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lipvae.report.evaluation import Evaluation
from lipvae.scores import SCORES

# Okabe & Ito's colours, which remain distinct for colour-blind readers. Grey is the inliers'.
_INLIER = "#7f7f7f"
_OUTLIERS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_BINS = 60


def draw_histograms(evaluation: Evaluation, path: str | os.PathLike[str], title: str = "") -> Path:
    """Draws one panel a score, with the inliers and every outlier set, to a PNG file.

    A panel spans the bulk of its scores, the 0.5th to the 99.5th percentile of each set; what lies
    outside is counted in the outermost bins. Where the sets differ by orders of magnitude the axis
    is logarithmic.

    Args:
        evaluation: the scores.
        path: of the PNG file; its folder must exist.
        title: above the panels.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: without matplotlib, saying how to install it.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no display and no global state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "histograms need matplotlib: pip install 'lipvae[plot]' (or pip install matplotlib)"
        ) from error
    names = list(evaluation.inliers)
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.7 * rows + 1.1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, name in zip(axes, names, strict=False):
        sets = [(evaluation.inlier_name, evaluation.inliers[name])]
        sets += [(label, scores[name]) for label, scores in evaluation.outliers.items()]
        _panel(axis, [(label, score.numpy()) for label, score in sets])
        axis.set_title(SCORES[name].title if name in SCORES else name, fontsize=11)
    handles, labels = next(iter(figure.axes)).get_legend_handles_labels()
    for axis in list(figure.axes)[len(names) :]:
        axis.axis("off")
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False
    )
    figure.suptitle(title, fontsize=12)
    figure.supxlabel("score (higher = more out-of-distribution)", fontsize=10)
    path = Path(path)
    figure.savefig(path, dpi=130)
    return path


def _panel(axis: object, sets: list[tuple[str, npt.NDArray[np.float64]]]) -> None:
    finite = [(label, values[np.isfinite(values)]) for label, values in sets]
    ranges = [np.quantile(values, (0.005, 0.995)) for _, values in finite if values.size]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    logarithmic = low > 0 and high > 100 * low
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, _BINS + 1) if logarithmic else np.linspace(low, high, _BINS + 1)
    for i, (label, values) in enumerate(finite):
        if not values.size:
            continue
        colour = _OUTLIERS[(i - 1) % len(_OUTLIERS)] if i else _INLIER
        share = np.full(values.size, 1 / values.size)
        style = {"alpha": 0.5} if i == 0 else {"histtype": "step", "linewidth": 1.5}
        clipped = np.clip(values, low, high)
        axis.hist(clipped, edges, weights=share, label=label, color=colour, **style)  # type: ignore[attr-defined]
    if logarithmic:
        axis.set_xscale("log")  # type: ignore[attr-defined]
    axis.set_yticks([])  # type: ignore[attr-defined]
    axis.spines[["top", "right", "left"]].set_visible(False)  # type: ignore[attr-defined]
    axis.tick_params(labelsize=8)  # type: ignore[attr-defined]
