"""Runs an experiment: what is missing is computed, then the results are written."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import lipvae
from lipvae._device_name import device_name
from lipvae.experiments import (
    compactness,
    dimensions,
    ensembles,
    figure1,
    figure2,
    figure3,
    recipe,
    store,
    table1,
    table2,
)
from lipvae.experiments.plots import have_matplotlib
from lipvae.experiments.runner import Runner
from lipvae.experiments.settings import Pair
from lipvae.experiments.tasks import Task

EXPERIMENTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        table1,
        figure1,
        dimensions,
        table2,
        figure2,
        figure3,
        compactness,
        recipe,
        ensembles,
    )
}


@dataclass(frozen=True)
class Written:
    """The files of an experiment; `figure` and `page` are None where there is none."""

    json: Path
    markdown: Path
    figure: Path | None
    page: Path | None


def reproduce(
    name: str,
    runner: Runner,
    seeds: Sequence[int],
    pairs: Sequence[Pair] | None = None,
    command: str = "",
) -> Written:
    """Computes an experiment and writes its results into the runner's folder.

    They are written anew after each seed, so an interrupted run leaves those it had; the same
    call goes on from there.

    Args:
        name: key of `EXPERIMENTS`.
        runner: folder, budget, data and device.
        seeds: of training and of the noise.
        pairs: of data sets; the experiment's own by default.
        command: stands in the results.

    Raises:
        ValueError: for another name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"target must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    experiment = EXPERIMENTS[name]
    pairs = experiment.DEFAULT_PAIRS if pairs is None else pairs
    tasks: list[Task] = []
    for i in range(1, 1 + (len(seeds) if experiment.AVERAGED else 1)):
        tasks += experiment.tasks(runner, pairs, seeds[i - 1 : i])
        tasks.append(_writing(experiment, runner, seeds[:i], pairs, command))
    runner.run(tasks)
    return write(experiment, runner, seeds, pairs, command)


def _writing(
    experiment: ModuleType,
    runner: Runner,
    seeds: Sequence[int],
    pairs: Sequence[Pair],
    command: str,
) -> Task:
    label = f"write {experiment.NAME}, seeds up to {seeds[-1]}"
    return Task(
        label,
        label,
        1.0,
        lambda: False,
        lambda: _ignore(write(experiment, runner, seeds, pairs, command)),
    )


def _ignore(_: object) -> None:
    """A task returns nothing."""


def write(
    experiment: ModuleType,
    runner: Runner,
    seeds: Sequence[int],
    pairs: Sequence[Pair],
    command: str,
) -> Written:
    """Writes what is there: JSON, Markdown, figure and page made from it."""
    result: dict[str, Any] = {
        "experiment": experiment.NAME,
        "command": command,
        "seeds": list(seeds),
        "budget": runner.budget.to_dict(),
        "environment": environment(runner.device),
    }
    result |= experiment.assemble(runner, pairs, seeds)
    json_path = runner.out / f"{experiment.NAME}.json"
    store.write_json(json_path, result)
    # From the file, so that what is shown is what is kept.
    result = store.read_json(json_path)
    markdown_path = json_path.with_suffix(".md")
    store.write_text(markdown_path, experiment.render(result))
    figure_path = None
    if experiment.PLOTS and have_matplotlib():
        figure_path = json_path.with_suffix(".png")
        experiment.plot(result, figure_path)
    page_path = None
    if hasattr(experiment, "page"):
        page_path = json_path.with_suffix(".html")
        store.write_text(page_path, experiment.page(result))
    return Written(json_path, markdown_path, figure_path, page_path)


def environment(device: torch.device | str) -> dict[str, Any]:
    """What the results were computed with."""
    return {
        "lipvae": lipvae.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }
