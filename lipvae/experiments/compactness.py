"""Is it compactness? Encoders of different constants, free log-variances, and none at all.

Fully connected, so that many can be trained; with the encoder's means and with refined ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipvae.experiments import figure2, markdown, store, table2
from lipvae.experiments.rows import Row, evaluate, summary
from lipvae.experiments.runner import Runner
from lipvae.experiments.settings import (
    GREY_PAIRS,
    LIPSCHITZ,
    VANILLA,
    ModelSpec,
    Pair,
    lipschitz_spec,
)
from lipvae.experiments.tasks import Task

NAME = "ablation-compactness"
TITLE = "What compactness does"
DEFAULT_PAIRS = (*GREY_PAIRS, Pair("fashion-mnist", "kmnist"), Pair("mnist", "kmnist"))
PLOTS = True
AVERAGED = True  # over seeds
SEEDS = (3, 1)  # by default, and with --quick

FC = {"architecture": "fc"}


def _fc(spec: ModelSpec, **options: Any) -> ModelSpec:
    return replace(spec, name=f"{spec.name}-fc", options=spec.options | FC | options)


FREE = replace(
    _fc(LIPSCHITZ, constrain_log_variance=False),
    name="lipschitz-free-log-variance-fc",
    title="Lipschitz VAE, M = 5, free log-variance",
)
SPECS = (
    *(_fc(lipschitz_spec(constant)) for constant in (1, 2, 5, 20, 100)),
    FREE,
    replace(_fc(VANILLA), title="VAE, no constant"),
)
# Score, and whether the means are refined.
SCORES = (
    ("hole_indicator", False),
    ("hole_indicator", True),
    ("stds_of_lls", False),
    ("stds_of_lls", True),
    ("is_log_likelihood", False),
    ("f_agg", False),
)


def rows_of(spec: ModelSpec) -> tuple[Row, ...]:
    """A row for each column of the table."""
    return tuple(Row(spec, score, refined=refined) for score, refined in SCORES)


LABELS = tuple(row.label for row in rows_of(VANILLA))


def all_rows() -> tuple[Row, ...]:
    """The rows of all models."""
    return tuple(row for spec in SPECS for row in rows_of(spec))


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """The models, their scores, and their latent norms."""
    found = table2.tasks_of(runner, all_rows(), pairs, seeds)
    for inliers, outliers in table2.available(runner, pairs).items():
        for spec in SPECS:
            for seed in seeds:
                for name in (inliers, *outliers):
                    found.append(figure2._task(runner, spec, inliers, seed, name))
    return found


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """Metrics and latent norms by model, as far as they are there."""
    listed = []
    for pair in pairs:
        reason = table2.obstacle(runner, pair)
        models = []
        for spec in SPECS if reason is None else ():
            rows = {
                row.label: evaluate(runner, row, pair, seeds)["metrics"] for row in rows_of(spec)
            }
            models.append(
                {
                    "model": spec.name,
                    "title": spec.title,
                    "scores": rows,
                    "inlier_norm": _norm(runner, spec, pair.inliers, seeds, pair.inliers),
                    "outlier_norm": _norm(runner, spec, pair.inliers, seeds, pair.outliers),
                }
            )
        listed.append(
            {"pair": pair.name, "title": pair.title, "unavailable": reason, "models": models}
        )
    return {"pairs": listed, "models": table2.model_records(runner, all_rows(), pairs, seeds)}


def _norm(
    runner: Runner, spec: ModelSpec, inliers: str, seeds: Sequence[int], name: str
) -> dict[str, Any] | None:
    """Median L-infinity norm of the posterior means, over seeds."""
    paths = [figure2._path(runner, spec, inliers, seed, name) for seed in seeds]
    values = [float(store.read_tensors(p)["norm"].median()) for p in paths if p.exists()]
    return summary(values) if values else None


def render(result: dict[str, Any]) -> str:
    """The ablation as Markdown."""
    parts = [markdown.preamble(TITLE, result)]
    parts.append(
        "AUROC of each score, by the encoder; and the median L-infinity norm of the posterior "
        "means.\n"
    )
    for pair in result["pairs"]:
        parts.append(f"## {pair['title']}\n")
        if pair["unavailable"]:
            parts.append(f"Not run: {pair['unavailable']}.\n")
            continue
        header = ["model", *LABELS, "norm, inliers", "norm, outliers"]
        lines = [
            [
                m["title"],
                *(markdown.spread((m["scores"][name] or {}).get("auroc")) for name in LABELS),
                markdown.spread(m["inlier_norm"]),
                markdown.spread(m["outlier_norm"]),
            ]
            for m in pair["models"]
        ]
        parts.append(markdown.table(header, lines) + "\n")
    parts.append("## Models\n")
    parts.append(table2.models_table(result["models"]) + "\n")
    return "\n".join(parts)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws the AUROC of each score, by the encoder."""
    from lipvae.experiments.plots import subplots

    pairs = [pair for pair in result["pairs"] if pair["models"]]
    with subplots(path, max(1, len(pairs)), 1, width=9.0) as axes:
        for (ax,), pair in zip(axes, pairs, strict=False):
            for label in LABELS:
                there = [(m["title"], m["scores"][label]) for m in pair["models"]]
                values = [(title, m["auroc"]) for title, m in there if m is not None]
                ax.errorbar(
                    [title for title, _ in values],
                    [value["mean"] for _, value in values],
                    [value["spread"] or 0.0 for _, value in values],
                    marker="o",
                    capsize=3,
                    label=label,
                )
            ax.set(ylabel="AUROC (%)")
            ax.set_title(pair["title"], fontsize="medium")
            ax.tick_params(axis="x", rotation=20, labelsize="small")
            ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
