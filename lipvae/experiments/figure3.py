"""Figure 3: the decoder's Lipschitz constant, under an encoder with M = 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipvae.experiments import markdown, table2
from lipvae.experiments.rows import Row, evaluate
from lipvae.experiments.runner import Runner
from lipvae.experiments.settings import GREY_PAIRS, Pair, lipschitz_spec
from lipvae.experiments.tasks import Task
from lipvae.scores import SCORES as DEFINITIONS

NAME = "figure3"
TITLE = "Figure 3: the decoder's Lipschitz constant"
DEFAULT_PAIRS = GREY_PAIRS
PLOTS = True
AVERAGED = True  # over seeds
SEEDS = (3, 1)  # by default, and with --quick

CONSTANTS = (1, 2, 3, 4, 5, 10)
SCORES = ("hole_indicator", "stds_of_lls", "is_log_likelihood")
SPECS = {m: lipschitz_spec(1.0, decoder=m) for m in CONSTANTS}
ROWS = tuple(Row(spec, score) for spec in SPECS.values() for score in SCORES)


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """A model for each constant, and its scores."""
    return table2.tasks_of(runner, ROWS, pairs, seeds)


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """Metrics by constant, as far as they are there."""
    listed = []
    for pair in pairs:
        reason = table2.obstacle(runner, pair)
        points = []
        for constant, spec in SPECS.items() if reason is None else ():
            rows = {s: evaluate(runner, Row(spec, s), pair, seeds)["metrics"] for s in SCORES}
            points.append({"decoder_lipschitz": constant, "scores": rows})
        listed.append(
            {"pair": pair.name, "title": pair.title, "unavailable": reason, "points": points}
        )
    return {"pairs": listed, "models": table2.model_records(runner, ROWS, pairs, seeds)}


def render(result: dict[str, Any]) -> str:
    """The figure's numbers as Markdown."""
    parts = [markdown.preamble(TITLE, result)]
    parts.append("The encoder is 1-Lipschitz, the decoder M-Lipschitz, both in L-infinity.\n")
    for pair in result["pairs"]:
        parts.append(f"## {pair['title']}\n")
        if pair["unavailable"]:
            parts.append(f"Not run: {pair['unavailable']}.\n")
            continue
        header = ["decoder M", "score", "AUROC", "AUPRC", "FPR80"]
        lines = []
        for point in pair["points"]:
            for score, metrics in point["scores"].items():
                values = [(metrics or {}).get(n) for n in ("auroc", "auprc", "fpr80")]
                lines.append(
                    [
                        str(point["decoder_lipschitz"]),
                        DEFINITIONS[score].title,
                        *map(markdown.spread, values),
                    ]
                )
        parts.append(markdown.table(header, lines) + "\n")
    parts.append("## Models\n")
    parts.append(table2.models_table(result["models"]) + "\n")
    return "\n".join(parts)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws AUROC, AUPRC and FPR80 against the constant."""
    from lipvae.experiments.plots import subplots

    pairs = [pair for pair in result["pairs"] if pair["points"]]
    names = {"auroc": "AUROC (%)", "auprc": "AUPRC (%)", "fpr80": "FPR80 (%)"}
    with subplots(path, max(1, len(pairs)), len(names)) as axes:
        for line, pair in zip(axes, pairs, strict=False):
            for ax, (metric, label) in zip(line, names.items(), strict=True):
                for score in SCORES:
                    points = [
                        (p["decoder_lipschitz"], p["scores"][score][metric])
                        for p in pair["points"]
                        if p["scores"][score] is not None
                    ]
                    x = [constant for constant, _ in points]
                    y = [value["mean"] for _, value in points]
                    error = [value["spread"] or 0.0 for _, value in points]
                    ax.errorbar(x, y, error, marker="o", capsize=3, label=DEFINITIONS[score].title)
                ax.set(xlabel="Lipschitz constant M of the decoder", ylabel=label)
                ax.set_title(pair["title"], fontsize="medium")
            line[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
