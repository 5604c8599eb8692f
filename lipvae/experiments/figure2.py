"""Figure 2: where the encoder puts inliers and outliers: L-infinity norms of posterior means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from lipvae.data.registry import REGISTRY
from lipvae.experiments import markdown, store, table2
from lipvae.experiments.images import fits
from lipvae.experiments.runner import Runner
from lipvae.experiments.settings import GREY_PAIRS, VANILLA, ModelSpec, Pair, lipschitz_spec
from lipvae.experiments.tasks import Task
from lipvae.models import LipschitzVAE

NAME = "figure2"
TITLE = "Figure 2: L-infinity norms of the posterior means"
DEFAULT_PAIRS = GREY_PAIRS
PLOTS = True
AVERAGED = False  # over seeds
SEEDS = (3, 1)  # by default, and with --quick

SPECS = (VANILLA, lipschitz_spec(1.0))
FURTHER = ("kmnist", "near-black", "near-white")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
GRID = 256


def _sets(runner: Runner, pair: Pair) -> tuple[list[str], list[str]]:
    """Sets that can be had, and why others cannot."""
    names = list(dict.fromkeys([pair.inliers, pair.outliers, *FURTHER]))
    shape = runner.images.shape(pair.inliers)
    reasons: dict[str, str | None] = {}
    for name in names:
        if name in REGISTRY and not fits(REGISTRY[name].shape, shape):
            reasons[name] = f"{name} has larger images than {pair.inliers}"
        else:
            reasons[name] = runner.images.obstacle(name, "test")
    missing = [reason for reason in reasons.values() if reason is not None]
    return [name for name in names if reasons[name] is None], missing


def _path(runner: Runner, spec: ModelSpec, inliers: str, seed: int, name: str) -> Path:
    key = runner.model_key(spec, inliers, seed)
    return runner.out / "norms" / key / f"{name}-{runner.budget.images}.safetensors"


def norms(runner: Runner, spec: ModelSpec, inliers: str, seed: int, name: str) -> Tensor:
    """max_j |mu_j(x)| of every test image: float64 [N]."""
    model = runner.model(spec, inliers, seed)
    x = runner.images.test(name, runner.budget.images, inliers)
    with torch.no_grad():
        parts = [model.encode(part.to(runner.device)).loc.cpu() for part in x.split(512)]
    return torch.cat(parts).double().abs().amax(1)


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """Both models, and the norms; of the first seed alone, since curves have no mean."""
    found = []
    seed = seeds[0]
    for pair in pairs:
        if table2.obstacle(runner, pair) is not None:
            continue
        for spec in SPECS:
            found.append(runner.train_task(spec, pair.inliers, seed))
            for name in _sets(runner, pair)[0]:
                found.append(norm_task(runner, spec, pair.inliers, seed, name))
    return found


def norm_task(runner: Runner, spec: ModelSpec, inliers: str, seed: int, name: str) -> Task:
    """Keeps the norms of a test set."""
    path = _path(runner, spec, inliers, seed, name)

    def run() -> None:
        store.write_tensors(path, {"norm": norms(runner, spec, inliers, seed, name)}, {})

    label = f"encode {name} by {spec.title} of {inliers}, seed {seed}"
    return Task(str(path), label, 1.0, path.exists, run)


def kept_norms(
    runner: Runner, spec: ModelSpec, inliers: str, seed: int, name: str
) -> Tensor | None:
    """The norms of a test set, float64 [N]; None before they are computed."""
    path = _path(runner, spec, inliers, seed, name)
    return store.read_tensors(path)["norm"] if path.exists() else None


def density(values: np.ndarray[Any, Any], grid: np.ndarray[Any, Any]) -> list[float] | None:
    """Kernel density estimate with Scott's bandwidth; None where all values are the same."""
    if len(values) < 2 or not values.std() > 1e-9 * max(1e-9, abs(values).max()):
        return None
    return scipy.stats.gaussian_kde(values)(grid).tolist()


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """Densities and quantiles, as far as they are there."""
    listed = []
    seed = seeds[0]
    for pair in pairs:
        reason = table2.obstacle(runner, pair)
        panels = [] if reason else [_panel(runner, spec, pair, seed) for spec in SPECS]
        listed.append(
            {
                "pair": pair.name,
                "title": pair.title,
                "unavailable": reason,
                "missing": [] if reason else _sets(runner, pair)[1],
                "panels": [panel for panel in panels if panel is not None],
            }
        )
    return {"pairs": listed}


def _panel(runner: Runner, spec: ModelSpec, pair: Pair, seed: int) -> dict[str, Any] | None:
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name in _sets(runner, pair)[0]:
        kept = kept_norms(runner, spec, pair.inliers, seed, name)
        if kept is not None:
            found[name] = kept.numpy()
    if not found:
        return None
    # The near-constant sets are spikes; the grid follows the others.
    broad = [v for name, v in found.items() if not name.startswith("near-")] or [*found.values()]
    grid = np.linspace(0.0, 1.1 * max(v.max() for v in broad), GRID)
    model = runner.model(spec, pair.inliers, seed)
    largest = None
    if isinstance(model, LipschitzVAE):
        box = model.certificate()
        largest = float(torch.maximum(box.upper.abs(), box.lower.abs()).max())
    return {
        "model": spec.name,
        "title": spec.title,
        "certified_norm": largest,
        "grid": grid.tolist(),
        "sets": {
            name: {
                "quantiles": np.quantile(values, QUANTILES).tolist(),
                "density": density(values, grid),
                "images": len(values),
            }
            for name, values in found.items()
        },
    }


def render(result: dict[str, Any]) -> str:
    """Quantiles as Markdown."""
    parts = [markdown.preamble(TITLE, result)]
    parts.append(f"Of seed {result['seeds'][0]}.\n")
    for pair in result["pairs"]:
        parts.append(f"## Trained on {pair['pair'].partition(':')[0]}\n")
        if pair["unavailable"]:
            parts.append(f"Not run: {pair['unavailable']}.\n")
        for reason in pair["missing"]:
            parts.append(f"Left out: {reason}.\n")
        header = ["model", "images", *(f"{100 * q:g}%" for q in QUANTILES), "certified at most"]
        lines = [
            [
                panel["title"],
                name,
                *(markdown.number(q, 3) for q in of["quantiles"]),
                markdown.number(panel["certified_norm"], 3),
            ]
            for panel in pair["panels"]
            for name, of in panel["sets"].items()
        ]
        parts.append(markdown.table(header, lines) + "\n")
    return "\n".join(parts)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws the densities, a row for each training set and a column for each model."""
    from lipvae.experiments.plots import subplots

    pairs = [pair for pair in result["pairs"] if pair["panels"]]
    with subplots(path, max(1, len(pairs)), len(SPECS)) as axes:
        for line, pair in zip(axes, pairs, strict=False):
            for ax, panel in zip(line, pair["panels"], strict=False):
                _draw(ax, panel)
                inliers = pair["pair"].partition(":")[0]
                ax.set_title(f"{panel['title']}, trained on {inliers}", fontsize="medium")
            # Its sets are those of the whole line, and beside the curves it hides none.
            line[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _draw(ax: Any, panel: dict[str, Any]) -> None:
    for name, of in panel["sets"].items():
        median = of["quantiles"][QUANTILES.index(0.5)]
        if of["density"] is None or name.startswith("near-"):
            ax.axvline(median, linestyle="--", color=f"C{len(ax.lines)}", label=f"{name} (median)")
            continue
        color = f"C{len(ax.lines)}"
        ax.plot(panel["grid"], of["density"], color=color, label=name)
        ax.fill_between(panel["grid"], of["density"], alpha=0.2, color=color)
    if panel["certified_norm"] is not None:
        ax.axvline(panel["certified_norm"], linestyle=":", color="black", label="certified bound")
    ax.set(xlabel="L-infinity norm of the posterior mean", ylabel="density", ylim=(0, None))
