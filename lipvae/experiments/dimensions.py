"""Does the sphere work in many dimensions? And Appendix C: what becomes of its area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipvae.experiments import markdown, table2
from lipvae.experiments.rows import judge, summaries, summary
from lipvae.experiments.runner import Runner
from lipvae.experiments.settings import GREY_PAIRS, VANILLA, ModelSpec, Pair
from lipvae.experiments.tasks import Task
from lipvae.ops.vmf_density import log_area

NAME = "dimensions"
TITLE = "The sphere in many dimensions"
DEFAULT_PAIRS = GREY_PAIRS[:1]
PLOTS = True
AVERAGED = True  # over seeds
SEEDS = (3, 1)  # by default, and with --quick

DIMENSIONS = (10, 20, 40, 70)
SCORES = ("hole_indicator", "stds_of_lls", "is_log_likelihood", "kl", "ess")
GROUP = "statistics"


def specs(m: int) -> tuple[ModelSpec, ModelSpec]:
    """The hyperspherical and the plain VAE of a latent size."""
    options = {"latent_dim": m}
    plain = replace(VANILLA, name=f"vanilla-m={m}", title=f"VAE, m = {m}", options=options)
    if m == VANILLA.arguments((1, 28, 28))["latent_dim"]:
        plain = replace(plain, name=VANILLA.name)  # that of Table 2
    name = f"sphere-conv-m={m}"
    return ModelSpec(name, f"Hyperspherical VAE, m = {m}", "HypersphericalVAE", options), plain


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """Two models for each dimension, and their scores."""
    found: list[Task] = []
    for seed in seeds:
        for inliers, outliers in table2.available(runner, pairs).items():
            for m in DIMENSIONS:
                for spec in specs(m):
                    found.append(runner.train_task(spec, inliers, seed))
                    for name in (inliers, *outliers):
                        found.append(runner.score_task(GROUP, spec, inliers, seed, name))
    return found


def _point(
    runner: Runner, spec: ModelSpec, m: int, pair: Pair, seeds: Sequence[int]
) -> dict[str, Any]:
    """Metrics of each score, and what the model makes of the inliers, over seeds."""
    metrics: dict[str, list[dict[str, float]]] = {score: [] for score in SCORES}
    kl, likelihood, bound = [], [], []
    for seed in seeds:
        inliers, outliers = (
            runner.scores(GROUP, spec, pair.inliers, seed, name)
            for name in (pair.inliers, pair.outliers)
        )
        record = runner.record(spec, pair.inliers, seed)
        if inliers is None or outliers is None or record is None:
            continue
        for score in SCORES:
            metrics[score].append(judge(inliers[score], outliers[score], "outliers"))
        kl.append(float(inliers["kl"].mean()))
        likelihood.append(-float(inliers["is_log_likelihood"].mean()))
        bound.append(record["history"]["validation_elbo"][-1])

    def over_seeds(values: list[float]) -> dict[str, Any] | None:
        return summary(values) if values else None

    return {
        "model": spec.name,
        "title": spec.title,
        "family": spec.kind,
        "m": m,
        "scores": {score: summaries(values) for score, values in metrics.items()},
        "kl": over_seeds(kl),
        "log_likelihood": over_seeds(likelihood),
        "validation_elbo": over_seeds(bound),
    }


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """Metrics by dimension, as far as they are there, and the area of spheres."""
    listed = []
    for pair in pairs:
        reason = table2.obstacle(runner, pair)
        points = [
            _point(runner, spec, m, pair, seeds)
            for m in (DIMENSIONS if reason is None else ())
            for spec in specs(m)
        ]
        listed.append(
            {"pair": pair.name, "title": pair.title, "unavailable": reason, "points": points}
        )
    return {"pairs": listed, "log_areas": {m: log_area(m) for m in range(2, 101)}}


def render(result: dict[str, Any]) -> str:
    """Metrics by dimension as Markdown."""
    parts = [markdown.preamble(TITLE, result)]
    for pair in result["pairs"]:
        parts.append(f"## {pair['title']}\n")
        if pair["unavailable"]:
            parts.append(f"Not run: {pair['unavailable']}.\n")
            continue
        header = ["model", "score", "AUROC", "AUPRC", "FPR80"]
        lines = [
            [
                point["title"],
                score,
                *(markdown.spread((found or {}).get(n)) for n in ("auroc", "auprc", "fpr80")),
            ]
            for point in pair["points"]
            for score, found in point["scores"].items()
        ]
        parts.append(markdown.table(header, lines) + "\n")
        parts.append("What the models make of inliers, in nats an image:\n")
        header = ["model", "validation ELBO", "test log p(x)", "KL of test images"]
        lines = [
            [
                point["title"],
                *(markdown.spread(point[n]) for n in ("validation_elbo", "log_likelihood", "kl")),
            ]
            for point in pair["points"]
        ]
        parts.append(markdown.table(header, lines) + "\n")
    parts.append("## The area of the sphere (Appendix C)\n")
    parts.append("log of the area of S^(m-1), m the dimension of the space around it:\n")
    areas = {int(m): area for m, area in result["log_areas"].items()}
    shown = [2, 3, max(areas, key=lambda m: areas[m]), *DIMENSIONS, 100]
    parts.append(
        markdown.table(["m", *map(str, shown)], [["log area", *(f"{areas[m]:.2f}" for m in shown)]])
        + "\n"
    )
    return "\n".join(parts)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws AUROC against m for each pair, and the log area of the sphere."""
    from lipvae.experiments.plots import subplots

    pairs = [pair for pair in result["pairs"] if pair["points"]]
    with subplots(path, 1, len(pairs) + 1) as ((*axes, last),):
        for ax, pair in zip(axes, pairs, strict=True):
            _draw(ax, pair)
        areas = {int(m): area for m, area in result["log_areas"].items()}
        last.plot(list(areas), list(areas.values()), color="C0")
        last.plot(DIMENSIONS, [areas[m] for m in DIMENSIONS], "o", color="C0")
        last.set(xlabel="m", ylabel="log area of $S^{m-1}$")
        last.set_title("surface-area collapse", fontsize="medium")


def _draw(ax: Any, pair: dict[str, Any]) -> None:
    for family, style in (("HypersphericalVAE", "-o"), ("VAE", "--s")):
        for number, score in enumerate(SCORES[:3]):
            there = [p for p in pair["points"] if p["family"] == family and p["scores"][score]]
            auroc = [point["scores"][score]["auroc"] for point in there]
            ax.errorbar(
                [point["m"] for point in there],
                [value["mean"] for value in auroc],
                [value["spread"] or 0.0 for value in auroc],
                fmt=style,
                color=f"C{number}",
                capsize=3,
                label=f"{'sphere' if family != 'VAE' else 'plain'}: {score}",
            )
    ax.set(xlabel="m", ylabel="AUROC (%)")
    ax.set_title(pair["title"], fontsize="medium")
    ax.legend(fontsize="x-small")
