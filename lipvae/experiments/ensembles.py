"""Several models at once: where they come from, and what each score makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lipvae.experiments import markdown, table2
from lipvae.experiments.compactness import DEFAULT_PAIRS as COMPACTNESS_PAIRS
from lipvae.experiments.rows import judge, summaries, summary
from lipvae.experiments.runner import DRAWS, Runner
from lipvae.experiments.settings import (
    BAYESIAN,
    LIPSCHITZ,
    VANILLA,
    EnsembleSpec,
    Pair,
    fully_connected,
    lipschitz_spec,
)
from lipvae.experiments.tasks import Task
from lipvae.scores import SCORES

NAME = "ensembles"
TITLE = "Ensembles"
DEFAULT_PAIRS = COMPACTNESS_PAIRS
PLOTS = False
AVERAGED = True  # over seeds
SEEDS = (3, 1)  # by default, and with --quick

MEMBERS = 3
ENSEMBLES = (
    *(
        EnsembleSpec(spec, "independent", MEMBERS)
        for spec in (
            LIPSCHITZ,
            VANILLA,
            *(
                replace(fully_connected(spec), title=f"{spec.title}, fully connected")
                for spec in (lipschitz_spec(5), lipschitz_spec(20), VANILLA)
            ),
        )
    ),
    EnsembleSpec(BAYESIAN, "bayes"),
    EnsembleSpec(VANILLA, "swag"),
    EnsembleSpec(VANILLA, "sghmc"),
)
# Scores of one model, and their means over the models.
MEANS = {"hole_indicator": "mean_hole_indicator", "stds_of_lls": "mean_stds_of_lls"}


def _groups(spec: EnsembleSpec) -> tuple[str, ...]:
    """Scores of the encoder's means, and of refined ones; of many draws those take too long."""
    return ("ensemble", "ensemble-refined") if spec.way == "independent" else ("ensemble",)


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """The models, the ensembles and their scores."""
    found: list[Task] = []
    for seed in seeds:
        for inliers, outliers in table2.available(runner, pairs).items():
            for spec in ENSEMBLES:
                found += runner.ensemble_tasks(spec, inliers, seed)
                for group in _groups(spec):
                    for name in (inliers, *outliers):
                        found.append(runner.score_task(group, spec, inliers, seed, name))
    return found


def _judged(
    runner: Runner, group: str, spec: EnsembleSpec, pair: Pair, seeds: Sequence[int]
) -> dict[str, Any] | None:
    """Metrics of each score over the seeds that are there, and of each model alone."""
    together: dict[str, list[dict[str, float]]] = {name: [] for name in DRAWS}
    alone: dict[str, list[dict[str, float]]] = {name: [] for name in MEANS}
    for seed in seeds:
        inliers, outliers = (
            runner.scores(group, spec, pair.inliers, seed, name)
            for name in (pair.inliers, pair.outliers)
        )
        if inliers is None or outliers is None:
            continue
        for name, values in together.items():
            values.append(judge(inliers[name], outliers[name], "outliers"))
        for name, values in alone.items():
            for of_inliers, of_outliers in zip(inliers[name], outliers[name], strict=True):
                values.append(judge(of_inliers, of_outliers, "outliers"))
    if not together[DRAWS[0]]:
        return None
    return {
        "together": {name: summaries(values) for name, values in together.items()},
        "alone": {name: summaries(values) for name, values in alone.items()},
    }


def _entry(runner: Runner, spec: EnsembleSpec, pair: Pair, seeds: Sequence[int]) -> dict[str, Any]:
    """One ensemble: each of its models alone, all together, and what they make of the inliers."""
    entry: dict[str, Any] = {"ensemble": spec.name, "title": spec.title, "scores": {}}
    for group in _groups(spec):
        entry["scores"][group] = _judged(runner, group, spec, pair, seeds)
    sets = [runner.scores("ensemble", spec, pair.inliers, seed, pair.inliers) for seed in seeds]
    means = [-float(s["ensemble_log_likelihood"].mean()) for s in sets if s is not None]
    entry["test_log_likelihood"] = summary(means) if means else None
    return entry


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """Metrics by ensemble, as far as they are there."""
    listed = []
    for pair in pairs:
        reason = table2.obstacle(runner, pair)
        specs = ENSEMBLES if reason is None else ()
        entries = [_entry(runner, spec, pair, seeds) for spec in specs]
        listed.append(
            {"pair": pair.name, "title": pair.title, "unavailable": reason, "ensembles": entries}
        )
    return {"pairs": listed}


def _auroc(entry: dict[str, Any], group: str, part: str, score: str) -> str:
    found = entry["scores"].get(group)
    return markdown.spread(None if found is None else found[part][score]["auroc"])


def render(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    budget = result["budget"]
    parts = [markdown.preamble(TITLE, result, draws=False)]
    parts.append(
        f"AUROC. Ensembles of {MEMBERS} trainings that share no seed, or of {budget['num_draws']} "
        f"draws; each model takes K = {budget['num_samples']} samples. SWAG and SGHMC draw in one "
        "more pass over the training images, from the VAE of the same seed. Alone: each of the "
        "models, ± over all models of all seeds. Together: the mean of their scores.\n"
    )
    for pair in result["pairs"]:
        parts.append(f"## {pair['title']}\n")
        if pair["unavailable"]:
            parts.append(f"Not run: {pair['unavailable']}.\n")
            continue
        header = ["models", "alone", "together", "refined, alone", "refined, together"]
        for score, mean in MEANS.items():
            lines = [
                [
                    e["title"],
                    *(
                        _auroc(e, group, part, name)
                        for group in ("ensemble", "ensemble-refined")
                        for part, name in (("alone", score), ("together", mean))
                    ),
                ]
                for e in pair["ensembles"]
            ]
            parts.append(f"{SCORES[score].title}:\n\n{markdown.table(header, lines)}\n")
        others = [name for name in DRAWS if name not in MEANS.values()]
        lines = [
            [
                e["title"],
                *(_auroc(e, "ensemble", "together", name) for name in others),
                markdown.spread(e["test_log_likelihood"]),
            ]
            for e in pair["ensembles"]
        ]
        header = ["models", *(SCORES[name].title for name in others), "test log p(x) (nats)"]
        parts.append(f"What only several models have:\n\n{markdown.table(header, lines)}\n")
    return "\n".join(parts)
