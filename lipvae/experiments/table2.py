"""Table 2: every score of every model on every pair, and the rows that the paper leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipvae.experiments import markdown
from lipvae.experiments.rows import Row, evaluate, score_tasks, summary, train_tasks
from lipvae.experiments.runner import GROUPS, Runner
from lipvae.experiments.settings import (
    BAYESIAN,
    FURTHER_PAIRS,
    LIPSCHITZ,
    PAPER_PAIRS,
    VANILLA,
    Pair,
)
from lipvae.experiments.tasks import Task
from lipvae.scores.complexity import bits

NAME = "table2"
TITLE = "Table 2: detection of outliers"
DEFAULT_PAIRS = PAPER_PAIRS + FURTHER_PAIRS
PLOTS = False
AVERAGED = True  # over seeds
SEEDS = (3, 1)  # by default, and with --quick

ROWS = (
    Row(VANILLA, "is_log_likelihood", in_paper=True),
    Row(VANILLA, "input_complexity", in_paper=True),
    Row(VANILLA, "typicality", in_paper=True),
    Row(BAYESIAN, "waic", "inliers", in_paper=True),
    Row(BAYESIAN, "disagreement", "inliers", in_paper=True),
    Row(BAYESIAN, "entropy", "inliers", in_paper=True),
    Row(LIPSCHITZ, "stds_of_lls", in_paper=True),
    Row(LIPSCHITZ, "hole_indicator", in_paper=True),
    Row(LIPSCHITZ, "stds_of_lls", refined=True),
    Row(LIPSCHITZ, "hole_indicator", refined=True),
    Row(VANILLA, "stds_of_lls", refined=True),
    Row(VANILLA, "hole_indicator", refined=True),
    Row(VANILLA, "hole_indicator"),
    Row(VANILLA, "stds_of_lls"),
    Row(BAYESIAN, "ensemble_stds_of_lls"),
    Row(BAYESIAN, "ensemble_log_likelihood"),
    Row(LIPSCHITZ, "is_log_likelihood"),
    Row(LIPSCHITZ, "f_lip"),
    Row(LIPSCHITZ, "f_agg"),
    Row(VANILLA, "likelihood_regret"),
    Row(None, "pixel_entropy"),
    Row(None, "pixel_mean"),
    Row(None, "nonzero_pixels"),
)


def obstacle(runner: Runner, pair: Pair) -> str | None:
    """Why a pair cannot be had; None if it can."""
    wanted = ((pair.inliers, "train"), (pair.inliers, "test"), (pair.outliers, "test"))
    found = (runner.images.obstacle(name, split) for name, split in wanted)  # type: ignore[arg-type]
    return next((reason for reason in found if reason is not None), None)


def available(runner: Runner, pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Outliers of the pairs that can be had, by their inliers."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        if obstacle(runner, pair) is None:
            found.setdefault(pair.inliers, []).append(pair.outliers)
    return found


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """Everything that the table needs: seed by seed, so that a first table is there early."""
    return tasks_of(runner, ROWS, pairs, seeds)


def tasks_of(
    runner: Runner, rows: Sequence[Row], pairs: Sequence[Pair], seeds: Sequence[int]
) -> list[Task]:
    """What rows need for the pairs that can be had."""
    found: list[Task] = []
    for seed in seeds:
        for inliers, outliers in available(runner, pairs).items():
            found += train_tasks(runner, rows, inliers, seed)
            found += score_tasks(runner, rows, inliers, seed, [inliers, *outliers])
    return found


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """The table, as far as its parts are there."""
    listed = []
    for pair in pairs:
        reason = obstacle(runner, pair)
        rows = [] if reason else [evaluate(runner, row, pair, seeds) for row in ROWS]
        listed.append(
            {
                "pair": pair.name,
                "title": pair.title,
                "in_paper": pair in PAPER_PAIRS,
                "unavailable": reason,
                "rows": rows,
            }
        )
    return {
        "pairs": listed,
        "models": model_records(runner, ROWS, pairs, seeds),
        "costs": cost_records(runner, pairs, seeds),
    }


def cost_records(
    runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """How fast each group of scores was, over all seeds and test sets."""
    groups = {(row.group, row.model.title if row.model else "No model"): row.model for row in ROWS}
    found = []
    for inliers, outliers in available(runner, pairs).items():
        for (group, title), spec in groups.items():
            records = [
                runner.score_record(group, spec, inliers, seed, name)
                for seed in (seeds if spec else [0])
                for name in (inliers, *outliers)
            ]
            there = [record for record in records if record is not None]
            if there:
                images, seconds = (sum(r[key] for r in there) for key in ("images", "seconds"))
                found.append(
                    {
                        "inliers": inliers,
                        "title": title,
                        "group": group,
                        "scores": list(GROUPS[group]),
                        "images": images,
                        "seconds": seconds,
                        "images_per_second": images / seconds,
                    }
                )
    return found


def model_records(
    runner: Runner,
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    single: str = "single",
) -> list[dict[str, Any]]:
    """How the models trained, and how well they predict test images by scores of a group."""
    specs = {row.model.name: row.model for row in rows if row.model is not None}
    found = []
    for inliers in available(runner, pairs):
        for spec in specs.values():
            records = [runner.record(spec, inliers, seed) for seed in seeds]
            there = [(seed, r) for seed, r in zip(seeds, records, strict=True) if r is not None]
            if not there:
                continue
            entry: dict[str, Any] = {
                "model": spec.name,
                "title": spec.title,
                "inliers": inliers,
                "config": there[0][1]["config"],
                "parameters": there[0][1]["parameters"],
                "seconds": summary([record["seconds"] for _, record in there]),
                "validation_elbo": summary(
                    [record["history"]["validation_elbo"][-1] for _, record in there]
                ),
                "test_log_likelihood": None,
                "bits_per_dimension": None,
            }
            group, score = single, "is_log_likelihood"
            if spec is BAYESIAN:
                group, score = "draws", "ensemble_log_likelihood"
            scores = [runner.scores(group, spec, inliers, seed, inliers) for seed in seeds]
            means = [-s[score].mean() for s in scores if s is not None]
            if means:
                config = entry["config"]
                dimensions = 1
                for side in config["input_shape"]:
                    dimensions *= side
                entry["test_log_likelihood"] = summary([float(mean) for mean in means])
                entry["bits_per_dimension"] = summary(
                    [float(bits(m, config["likelihood"], dimensions)) / dimensions for m in means]
                )
            found.append(entry)
    return found


def models_table(models: Sequence[dict[str, Any]]) -> str:
    """The models as Markdown."""
    header = ["model", "trained on", "likelihood", "m", "parameters", "validation ELBO (nats)"]
    header += ["test log p(x) (nats)", "test bits per dimension", "training (s)"]
    lines = [
        [
            m["title"],
            m["inliers"],
            m["config"]["likelihood"],
            str(m["config"]["latent_dim"]),
            f"{m['parameters']:,}",
            markdown.spread(m["validation_elbo"]),
            markdown.spread(m["test_log_likelihood"]),
            markdown.spread(m["bits_per_dimension"]),
            markdown.number(m["seconds"]["mean"], 0),
        ]
        for m in models
    ]
    return markdown.table(header, lines)


def render(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    parts = [markdown.preamble(TITLE, result)]
    parts.append(
        "AUPRC and FPR80 take as positive the class that the paper takes: inliers for WAIC, "
        "disagreement and entropy, outliers for the rest; the last column has the other AUPRC.\n"
    )
    budget = result["budget"]
    regret = budget["regret"]
    parts.append(
        f"Likelihood regret: {budget['regret_images']} images of each set, {regret['steps']} steps "
        f"of Adam with {2 * regret['pairs']} samples of z each.\n"
    )
    for pair in result["pairs"]:
        parts.append(f"## {pair['title']}{'' if pair['in_paper'] else ' (not in the paper)'}\n")
        if pair["unavailable"]:
            parts.append(f"Not run: {pair['unavailable']}.\n")
            continue
        parts.append("Rows of the paper's table:\n")
        parts.append(markdown.rows_table([r for r in pair["rows"] if r["in_paper"]]) + "\n")
        parts.append("Rows beyond it:\n")
        parts.append(markdown.rows_table([r for r in pair["rows"] if not r["in_paper"]]) + "\n")
    parts.append("## Models\n")
    parts.append(models_table(result["models"]) + "\n")
    parts.append(
        "Bits per dimension of a Bernoulli on grey pixels are no code length: it is no "
        "distribution over grey levels.\n"
    )
    parts.append("## Cost of scoring\n")
    parts.append(
        markdown.table(
            ["model", "trained on", "scores, computed together", "images", "images per second"],
            [
                [
                    cost["title"] + (", refined" if cost["group"] == "refined" else ""),
                    cost["inliers"],
                    ", ".join(cost["scores"]),
                    str(cost["images"]),
                    markdown.number(cost["images_per_second"], 0),
                ]
                for cost in result["costs"]
            ],
        )
        + "\n"
    )
    return "\n".join(parts)
