"""Histograms of scores."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lipvae.report.evaluation import Evaluation
from lipvae.scores import SCORES

# Okabe & Ito's colours, which remain distinct for colour-blind readers. Grey is the inliers'.
_INLIER = "#7f7f7f"
_OUTLIERS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_BINS = 40
PICTURES = (".png", ".pdf", ".svg")


def check_picture(name: str, path: str | os.PathLike[str]) -> None:
    """Before long work: what :func:`draw_histograms` refuses.

    Args:
        name: of the argument, for messages.
        path: of the picture.

    Raises:
        ValueError: for another ending than .png, .pdf or .svg.
        ModuleNotFoundError: without matplotlib, saying how to install it.
    """
    if Path(path).suffix.lower() not in PICTURES:
        raise ValueError(f"{name} must end in {', '.join(PICTURES)}, got {os.fspath(path)!r}")
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure  # no pyplot: no display and no global state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "histograms need matplotlib: pip install 'lipvae[plot]' (or pip install matplotlib)"
        ) from error
    return Figure


def draw_histograms(evaluation: Evaluation, path: str | os.PathLike[str], title: str = "") -> Path:
    """Draws one panel a score, with the inliers and every outlier set, to a file.

    Each histogram is scaled to the same height, so that a narrow set does not flatten the others.
    A panel spans the 0.5th to the 99.5th percentile of each set; what lies outside is counted in
    the outermost bins. Where the scores span more than two orders of magnitude its axis is
    logarithmic.

    Args:
        evaluation: the scores.
        path: of the .png, .pdf or .svg file; its folder must exist.
        title: above the panels.

    Returns:
        The path.

    Raises:
        ValueError: for another ending of the path.
        ModuleNotFoundError: without matplotlib, saying how to install it.
    """
    check_picture("path", path)
    names = list(evaluation.inliers)
    # One more cell than scores: the last holds the legend.
    columns = min(len(names) + 1, 4)
    rows = math.ceil((len(names) + 1) / columns)
    figure = _figure_class()(figsize=(3.4 * columns, 2.5 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, name in zip(axes, names, strict=False):
        sets = [(evaluation.inlier_name, evaluation.inliers[name])]
        sets += [(label, scores[name]) for label, scores in evaluation.outliers.items()]
        # matplotlib leaves labels that start with _ out of the legend.
        sets = [(f" {label}" if label.startswith("_") else label, score) for label, score in sets]
        _panel(axis, [(label, score.numpy()) for label, score in sets])
        axis.set_title(SCORES[name].title if name in SCORES else name, fontsize=11)
    for axis in axes[len(names) :]:
        axis.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    legend = axes[len(names)].legend(handles, labels, loc="center left", frameon=False, fontsize=10)
    # Dollars in names are not mathematics.
    for text in (*legend.get_texts(), figure.suptitle(title, fontsize=12)):
        text.set_parse_math(False)
    figure.supxlabel("score: higher is more out-of-distribution", fontsize=10)
    path = Path(path)
    figure.savefig(path, dpi=130)
    return path


def _panel(axis: Any, sets: list[tuple[str, npt.NDArray[np.float64]]]) -> None:
    finite = [(label, values[np.isfinite(values)]) for label, values in sets]
    ranges = [np.quantile(values, (0.005, 0.995)) for _, values in finite if values.size]
    low, high = min((r[0] for r in ranges), default=0), max((r[1] for r in ranges), default=0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    logarithmic = low > 0 and high > 100 * low
    edges = np.geomspace(low, high, _BINS + 1) if logarithmic else np.linspace(low, high, _BINS + 1)
    for i, (label, values) in enumerate(finite):
        counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        height = counts / max(counts.max(), 1)
        if i == 0:
            axis.stairs(height, edges, fill=True, color=_INLIER, alpha=0.5, label=label)
        else:
            colour = _OUTLIERS[(i - 1) % len(_OUTLIERS)]
            axis.stairs(height, edges, color=colour, linewidth=1.4, label=label)
    if logarithmic:
        axis.set_xscale("log")
    axis.set_ylim(0, 1.08)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(labelsize=8)
