"""Rows of result tables: a score of a model, judged over seeds and beside the paper's figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipvae.experiments import paper
from lipvae.experiments.runner import Runner, group_of
from lipvae.experiments.settings import ModelSpec, Pair
from lipvae.experiments.tasks import Task
from lipvae.metrics import ood_metrics
from lipvae.scores import SCORES


@dataclass(frozen=True)
class Row:
    """A score of a model.

    Attributes:
        model: None for a score without a model.
        score: key of `lipvae.scores.SCORES`.
        positive: the class that the paper takes as positive in AUPRC and FPR80.
        in_paper: whether the paper's Table 2 has such a row.
        refined: whether each image's mean goes up its ELBO first, :mod:`lipvae.refinement`.
    """

    model: ModelSpec | None
    score: str
    positive: paper.Positive = "outliers"
    in_paper: bool = False
    refined: bool = False

    @property
    def name(self) -> str:
        """Model and score."""
        name = f"{self.model.name if self.model else 'none'}/{self.score}"
        return f"{name}/refined" if self.refined else name

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.model.title if self.model else 'No model'}: {self.label}"

    @property
    def label(self) -> str:
        """The title without the model."""
        title = SCORES[self.score].title
        return f"{title}, refined" if self.refined else title

    @property
    def group(self) -> str:
        """What it is computed with, a key of `lipvae.experiments.runner.GROUPS`."""
        return "refined" if self.refined else group_of(self.score)


def train_tasks(runner: Runner, rows: Sequence[Row], inliers: str, seed: int) -> list[Task]:
    """Trains what the rows need."""
    specs = {row.model.name: row.model for row in rows if row.model is not None}
    return [runner.train_task(spec, inliers, seed) for spec in specs.values()]


def score_tasks(
    runner: Runner, rows: Sequence[Row], inliers: str, seed: int, images: Sequence[str]
) -> list[Task]:
    """Scores the test sets by what the rows need; scores without a model for the first seed."""
    tasks = []
    needed = {(r.group, r.model.name if r.model else ""): r.model for r in rows}
    for (group, _), spec in needed.items():
        for name in images:
            tasks.append(runner.score_task(group, spec, inliers, seed if spec else 0, name))
    return tasks


def judge(inliers: Tensor, outliers: Tensor, positive: paper.Positive) -> dict[str, float]:
    """Metrics in percent.

    Returns:
        auroc; auprc and fpr80 of the positive class; auprc_other, of the other class.
    """
    found = ood_metrics(inliers, outliers)
    if positive == "outliers":
        return _percent(found.auroc, found.auprc, found.fpr80, found.auprc_inlier)
    # The same question with the classes, and so the sign, exchanged.
    turned = ood_metrics(-outliers, -inliers)
    return _percent(turned.auroc, turned.auprc, turned.fpr80, turned.auprc_inlier)


def _percent(auroc: float, auprc: float, fpr80: float, other: float) -> dict[str, float]:
    values = {"auroc": auroc, "auprc": auprc, "fpr80": fpr80, "auprc_other": other}
    return {name: 100 * value for name, value in values.items()}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and spread (sample standard deviation; None for a single value) over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "values": list(values)}


def summaries(found: Sequence[dict[str, float]]) -> dict[str, Any] | None:
    """The summary of each metric of `judge` over seeds; None without any."""
    return {name: summary([each[name] for each in found]) for name in found[0]} if found else None


def evaluate(runner: Runner, row: Row, pair: Pair, seeds: Sequence[int]) -> dict[str, Any]:
    """A row of a pair: metrics over the seeds that are there, and the paper's beside them."""
    found: list[dict[str, float]] = []
    used: list[int] = []
    group = row.group
    for seed in seeds if row.model else [0]:
        sets = [
            runner.scores(group, row.model, pair.inliers, seed, name)
            for name in (pair.inliers, pair.outliers)
        ]
        if sets[0] is None or sets[1] is None:
            continue
        found.append(judge(sets[0][row.score], sets[1][row.score], row.positive))
        used.append(seed)
    known = paper.table_2(row.name, pair.inliers, pair.outliers)
    metrics = summaries(found)
    difference = None
    if known is not None and metrics is not None:
        difference = {name: metrics[name]["mean"] - value for name, value in known.items()}
    return {
        "row": row.name,
        "title": row.title,
        "positive": row.positive,
        "in_paper": row.in_paper,
        "seeds": used if row.model else [],
        "metrics": metrics,
        "paper": known,
        "difference": difference,
    }
