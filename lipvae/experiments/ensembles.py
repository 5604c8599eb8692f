"""Several models at once: where they come from, and what each score makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipvae.experiments import markdown, table2
from lipvae.experiments.compactness import DEFAULT_PAIRS as COMPACTNESS_PAIRS
from lipvae.experiments.rows import judge, summary
from lipvae.experiments.runner import DRAWS, Runner, Spec
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
            fully_connected(lipschitz_spec(5)),
            fully_connected(lipschitz_spec(20)),
            fully_connected(VANILLA),
        )
    ),
    EnsembleSpec(BAYESIAN, "bayes"),
    EnsembleSpec(VANILLA, "swag"),
    EnsembleSpec(VANILLA, "sghmc"),
)
# Scores of one model, and their means over the models.
MEANS = {"hole_indicator": "mean_hole_indicator", "stds_of_lls": "mean_stds_of_lls"}


def _refined(spec: EnsembleSpec) -> bool:
    """Whether refined means are scored too; of many draws that takes long."""
    return spec.way == "independent"


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """The models, the ensembles, and the scores of both."""
    found: list[Task] = []
    for seed in seeds:
        for inliers, outliers in table2.available(runner, pairs).items():
            for spec in ENSEMBLES:
                found += runner.ensemble_tasks(spec, inliers, seed)
                for refined in (False, True) if _refined(spec) else (False,):
                    for name in (inliers, *outliers):
                        one, together = _groups(refined)
                        for s in spec.seeds(seed):
                            found.append(runner.score_task(one, spec.base, inliers, s, name))
                        found.append(runner.score_task(together, spec, inliers, seed, name))
    return found


def _groups(refined: bool) -> tuple[str, str]:
    """What one model, and what the ensemble, is scored with."""
    return ("refined", "ensemble-refined") if refined else ("statistics", "ensemble")


def _judged(
    runner: Runner, group: str, spec: Spec, score: str, pair: Pair, seeds: Sequence[int]
) -> dict[str, Any] | None:
    """Metrics of a score over the seeds that are there; None without any."""
    found = []
    for seed in seeds:
        inliers, outliers = (
            runner.scores(group, spec, pair.inliers, seed, name)
            for name in (pair.inliers, pair.outliers)
        )
        if inliers is not None and outliers is not None:
            found.append(judge(inliers[score], outliers[score], "outliers"))
    return {name: summary([f[name] for f in found]) for name in found[0]} if found else None


def _entry(runner: Runner, spec: EnsembleSpec, pair: Pair, seeds: Sequence[int]) -> dict[str, Any]:
    """One ensemble: each of its models alone, all together, and what they make of the inliers."""
    trained = [s for seed in seeds for s in spec.seeds(seed)]
    entry: dict[str, Any] = {"ensemble": spec.name, "title": spec.title}
    for key, refined in {"plain": False, "refined": True}.items():
        one, together = _groups(refined)
        wanted = _refined(spec) or not refined
        entry[key] = (
            {
                "one": {n: _judged(runner, one, spec.base, n, pair, trained) for n in MEANS},
                "together": {n: _judged(runner, together, spec, n, pair, seeds) for n in DRAWS},
            }
            if wanted
            else None
        )
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


def _auroc(metrics: dict[str, Any] | None) -> str:
    return markdown.spread(None if metrics is None else metrics["auroc"])


def render(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    budget = result["budget"]
    parts = [markdown.preamble(TITLE, result)]
    parts.append(
        f"AUROC. Ensembles of {MEMBERS} trainings that share no seed, or of {budget['num_draws']} "
        f"draws; each model takes K = {budget['num_samples']} samples. SWAG and SGHMC draw in one "
        "more pass over the training images, from the VAE of the same seed. Alone: each of the "
        "trained models. Together: the mean of the models' scores.\n"
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
                        _auroc(e[key] and e[key][part][name])
                        for key in ("plain", "refined")
                        for part, name in (("one", score), ("together", mean))
                    ),
                ]
                for e in pair["ensembles"]
            ]
            parts.append(f"{SCORES[score].title}:\n\n{markdown.table(header, lines)}\n")
        others = [name for name in DRAWS if name not in MEANS.values()]
        lines = [
            [
                e["title"],
                *(_auroc(e["plain"]["together"][name]) for name in others),
                markdown.spread(e["test_log_likelihood"]),
            ]
            for e in pair["ensembles"]
        ]
        header = ["models", *(SCORES[name].title for name in others), "test log p(x) (nats)"]
        parts.append(f"What only several models have:\n\n{markdown.table(header, lines)}\n")
    return "\n".join(parts)
