"""Models that differ in one thing each, judged by the same scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipvae.experiments import figure2, markdown, table2
from lipvae.experiments.rows import Row, evaluate, summary
from lipvae.experiments.runner import Runner
from lipvae.experiments.settings import ModelSpec, Pair
from lipvae.experiments.tasks import Task


@dataclass
class Ablation:
    """An experiment's four functions.

    Attributes:
        title: of the results.
        remark: stands below it.
        specs: the models.
        scores: name, and whether the posterior means are refined.
        norms: whether to tell the latent norms of inliers and outliers.
    """

    title: str
    remark: str
    specs: tuple[ModelSpec, ...]
    scores: tuple[tuple[str, bool], ...]
    norms: bool = False

    def rows_of(self, spec: ModelSpec) -> tuple[Row, ...]:
        """A row for each column of the table."""
        return tuple(Row(spec, score, refined=refined) for score, refined in self.scores)

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(row.label for row in self.rows_of(self.specs[0]))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all models."""
        return tuple(row for spec in self.specs for row in self.rows_of(spec))

    def tasks(self, runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
        """The models, their scores, and their latent norms."""
        found = table2.tasks_of(runner, self.rows, pairs, seeds)
        for inliers, outliers in table2.available(runner, pairs).items():
            for spec in self.specs if self.norms else ():
                for seed in seeds:
                    for name in (inliers, *outliers):
                        found.append(figure2.norm_task(runner, spec, inliers, seed, name))
        return found

    def assemble(
        self, runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Metrics and latent norms by model, as far as they are there."""
        listed = []
        for pair in pairs:
            reason = table2.obstacle(runner, pair)
            specs = self.specs if reason is None else ()
            models = [self._judged(runner, spec, pair, seeds) for spec in specs]
            listed.append(
                {"pair": pair.name, "title": pair.title, "unavailable": reason, "models": models}
            )
        return {"pairs": listed, "models": table2.model_records(runner, self.rows, pairs, seeds)}

    def _judged(
        self, runner: Runner, spec: ModelSpec, pair: Pair, seeds: Sequence[int]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": spec.name,
            "title": spec.title,
            "scores": {
                row.label: evaluate(runner, row, pair, seeds)["metrics"]
                for row in self.rows_of(spec)
            },
        }
        if self.norms:
            found["inlier_norm"] = _norm(runner, spec, pair.inliers, seeds, pair.inliers)
            found["outlier_norm"] = _norm(runner, spec, pair.inliers, seeds, pair.outliers)
        return found

    def render(self, result: dict[str, Any]) -> str:
        """The ablation as Markdown."""
        parts = [markdown.preamble(self.title, result), f"{self.remark}\n"]
        norms = {"norm, inliers": "inlier_norm", "norm, outliers": "outlier_norm"}
        if not self.norms:
            norms = {}
        for pair in result["pairs"]:
            parts.append(f"## {pair['title']}\n")
            if pair["unavailable"]:
                parts.append(f"Not run: {pair['unavailable']}.\n")
                continue
            lines = [
                [
                    m["title"],
                    *(markdown.spread((m["scores"][x] or {}).get("auroc")) for x in self.labels),
                    *(markdown.spread(m[key]) for key in norms.values()),
                ]
                for m in pair["models"]
            ]
            parts.append(markdown.table(["model", *self.labels, *norms], lines) + "\n")
        parts.append("## Models\n")
        parts.append(table2.models_table(result["models"]) + "\n")
        return "\n".join(parts)

    def plot(self, result: dict[str, Any], path: Path) -> None:
        """Draws the AUROC of each score, by the model."""
        from lipvae.experiments.plots import subplots

        pairs = [pair for pair in result["pairs"] if pair["models"]]
        with subplots(path, max(1, len(pairs)), 1, width=9.0) as axes:
            for (ax,), pair in zip(axes, pairs, strict=False):
                for column in self.labels:
                    there = [(m["title"], m["scores"][column]) for m in pair["models"]]
                    values = [(title, m["auroc"]) for title, m in there if m is not None]
                    ax.errorbar(
                        [title for title, _ in values],
                        [value["mean"] for _, value in values],
                        [value["spread"] or 0.0 for _, value in values],
                        marker="o",
                        capsize=3,
                        label=column,
                    )
                ax.set(ylabel="AUROC (%)")
                ax.set_title(pair["title"], fontsize="medium")
                for label in ax.get_xticklabels():
                    label.set(rotation=20, ha="right", rotation_mode="anchor", fontsize="small")
                ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _norm(
    runner: Runner, spec: ModelSpec, inliers: str, seeds: Sequence[int], name: str
) -> dict[str, Any] | None:
    """Median L-infinity norm of the posterior means, over seeds."""
    found = [figure2.kept_norms(runner, spec, inliers, seed, name) for seed in seeds]
    values = [float(norm.median()) for norm in found if norm is not None]
    return summary(values) if values else None
