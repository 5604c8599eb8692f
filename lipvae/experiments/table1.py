"""Table 1: a sphere in three dimensions that knows two digits, and a plain VAE beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.stats
from sklearn.metrics import average_precision_score

from lipvae.experiments import markdown, paper, subsets, table2
from lipvae.experiments.rows import Row
from lipvae.experiments.runner import GROUPS, Runner
from lipvae.experiments.settings import SPHERE, ModelSpec, Pair
from lipvae.experiments.tasks import Task
from lipvae.metrics import ood_metrics
from lipvae.scores import SCORES

NAME = "table1"
TITLE = "Table 1: two digits on a sphere"
PLOTS = False
AVERAGED = True  # over seeds
SEEDS = (10, 3)  # by default, and with --quick

TWO, HELD_OUT = "mnist-01", "mnist-23456789"
DEFAULT_PAIRS = (
    Pair(TWO, HELD_OUT),
    Pair(TWO, "fashion-mnist"),
    Pair("fashion-mnist", "mnist"),
)

CONFIDENCE = 0.999
GROUP = "statistics"
PLAIN = ModelSpec("vanilla-m=3", "VAE, m = 3", "VAE", SPHERE.options)
SPECS = (SPHERE, PLAIN)
ROWS = tuple(Row(spec, score) for spec in SPECS for score in GROUPS[GROUP])


def toy(runner: Runner) -> Runner:
    """The runner with the images and the number of samples of the paper's toy."""
    budget = runner.budget
    budget = replace(budget, images=budget.toy_images, num_samples=budget.toy_samples)
    changed = (runner.device, runner.report, runner.progress)
    return Runner(runner.out, budget, runner.images, *changed)


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """The models and their scores."""
    runner = toy(runner)
    found: list[Task] = []
    for seed in seeds:
        for inliers, outliers in table2.available(runner, pairs).items():
            for spec in SPECS:
                found.append(runner.train_task(spec, inliers, seed))
                for name in (inliers, *outliers):
                    found.append(runner.score_task(GROUP, spec, inliers, seed, name))
    return found


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and half the width of Student's interval, None for a single value, at `CONFIDENCE`.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])
        >>> found["mean"], round(found["spread"], 3)
        (2.0, 18.244)
    """
    n = len(values)
    half = None
    if n > 1:
        quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
        half = quantile * statistics.stdev(values) / math.sqrt(n)
    return {"mean": statistics.fmean(values), "spread": half, "values": list(values)}


def weighted_auprc(inliers: Any, outliers: Any, ratio: float) -> float:
    """Average precision with the outliers' weight such that there are `ratio` of them per inlier.

    Args:
        inliers: scores [N].
        outliers: scores [M], the positive class.
        ratio: of the sum of the outliers' weights to that of the inliers'.

    Example:
        >>> round(weighted_auprc([0.0, 2.0], [1.0, 3.0], ratio=1.0), 4)
        0.8333
    """
    scores = np.concatenate([np.asarray(inliers), np.asarray(outliers)])
    positive = np.repeat([False, True], [len(inliers), len(outliers)])
    weight = np.where(positive, ratio * len(inliers) / len(outliers), 1.0)
    return float(average_precision_score(positive, scores, sample_weight=weight))


def _ratios(runner: Runner, pair: Pair) -> dict[str, float | None]:
    """Outliers of each split to test inliers."""
    inliers = runner.images.count(pair.inliers, "test")
    assert inliers is not None
    found: dict[str, float | None] = {}
    for split in ("test", "train"):
        count = runner.images.count(pair.outliers, split)
        found[split] = None if count is None else count / inliers
    return found


def _evaluate(
    runner: Runner, row: Row, pair: Pair, seeds: Sequence[int], ratios: dict[str, float | None]
) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    used = []
    for seed in seeds:
        sets = [
            runner.scores(GROUP, row.model, pair.inliers, seed, name)
            for name in (pair.inliers, pair.outliers)
        ]
        if sets[0] is None or sets[1] is None:
            continue
        inliers, outliers = sets[0][row.score], sets[1][row.score]
        metrics = ood_metrics(inliers, outliers)
        values = {"auroc": metrics.auroc, "fpr80": metrics.fpr80}
        for split, ratio in ratios.items():
            if ratio is not None:
                values[f"auprc_{split}"] = weighted_auprc(inliers, outliers, ratio)
        for name, value in values.items():
            found.setdefault(name, []).append(100 * value)
        used.append(seed)
    return {
        "row": row.name,
        "model": row.model.title if row.model else None,
        "score": SCORES[row.score].title,
        "seeds": used,
        "metrics": {name: interval(values) for name, values in found.items()} or None,
        "paper": paper.table_1(row.name, pair.inliers, pair.outliers),
    }


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """The table, as far as its parts are there."""
    runner = toy(runner)
    listed = []
    for pair in pairs:
        reason = table2.obstacle(runner, pair)
        ratios = {} if reason else _ratios(runner, pair)
        rows = [] if reason else [_evaluate(runner, r, pair, seeds, ratios) for r in ROWS]
        listed.append(
            {
                "pair": pair.name,
                "title": pair.title,
                "unavailable": reason,
                "ratios": ratios,
                "rows": rows,
            }
        )
    return {
        "budget": runner.budget.to_dict(),
        "confidence": CONFIDENCE,
        "pairs": listed,
        "models": table2.model_records(runner, ROWS, pairs, seeds, GROUP),
    }


_COLUMNS = {
    "auroc": "AUROC",
    "auprc_test": "AUPRC, test split's outliers",
    "auprc_train": "AUPRC, training split's",
    "fpr80": "FPR80",
}


def render(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    budget = result["budget"]
    parts = [markdown.preamble(TITLE, result)]
    parts.append(
        f"{budget['toy_epochs']} epochs for sets of a few classes. In the tables ± is half of a "
        f"{100 * result['confidence']:g}% confidence interval of the mean over seeds (Student's). "
        "The outliers are the positive class. An AUPRC depends on how many outliers there are to "
        "an inlier: the inliers are those of the test split, and the outliers are weighted to "
        "their number in the test or the training split.\n"
    )
    for pair in result["pairs"]:
        parts.append(f"## {pair['title']}\n")
        if pair["unavailable"]:
            parts.append(f"Not run: {pair['unavailable']}.\n")
            continue
        numbers = ", ".join(
            f"{markdown.number(ratio)} ({split} split)" for split, ratio in pair["ratios"].items()
        )
        parts.append(f"Outliers to an inlier: {numbers}.\n")
        header = ["model", "score", *_COLUMNS.values(), "paper"]
        lines = []
        for row in pair["rows"]:
            metrics, known = row["metrics"] or {}, row["paper"]
            told = markdown.ABSENT
            if known is not None:
                told = " / ".join(f"{known[name]:.2f}" for name in paper.METRICS)
            cells = [markdown.spread(metrics.get(name)) for name in _COLUMNS]
            lines.append([row["model"], row["score"], *cells, told])
        parts.append(markdown.table(header, lines) + "\n")
    parts.append('"paper" is AUROC / AUPRC / FPR80.\n')
    parts.append("## Models\n")
    parts.append(table2.models_table(result["models"]) + "\n")
    trained = sorted({subsets.title(m["inliers"]) for m in result["models"]})
    if trained:
        parts.append(
            f"± here is the standard deviation over seeds. Trained on: {'; '.join(trained)}.\n"
        )
    return "\n".join(parts)
