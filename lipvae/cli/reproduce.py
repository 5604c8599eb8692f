"""``lipvae reproduce``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lipvae.cli import _common as common
from lipvae.cli import _options as options
from lipvae.experiments import EXPERIMENTS, FULL, QUICK, Images, Runner, parse_pairs
from lipvae.experiments import reproduce as run
from lipvae.experiments.plots import have_matplotlib

ALL = "all"


@common.user_errors
def reproduce(
    target: Annotated[
        str, typer.Argument(help=f"One of {', '.join(EXPERIMENTS)}, or {ALL}.")
    ] = "table2",
    quick: Annotated[
        bool, typer.Option("--quick", help="Short training, fewer samples: table2 in half an hour.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train this often. By default 3, 1 with --quick; table1: 10, 3 with --quick.",
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Pairs of data sets: all, paper, or INLIERS:OUTLIERS joined by commas; mnist-01 "
            "is MNIST cut to two classes. The target's own by default."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of models, scores and results; a run goes on from it.")
    ] = Path("reproduce"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training images, for all sets.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Test images of each set that are scored.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=2, help="Latent samples K of each image.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="A folder with data sets. Default: $LIPVAE_DATA.")
    ] = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Rebuild the paper's tables and figures, beside the paper's own figures.

    Every trained model and every test set's scores are kept in the folder. A run that was
    interrupted goes on where it stopped when the same command is given again, and targets share
    what they have in common. Data sets are fetched; where one cannot be had, the table says so.

    **Examples**

    - `lipvae reproduce table1`
    - `lipvae reproduce table2 --quick`
    - `lipvae reproduce all --seeds 5 --out results`
    - `lipvae reproduce figure3 --pairs fashion-mnist:mnist`
    """
    if target not in (*EXPERIMENTS, ALL):
        raise ValueError(f"target must be one of {', '.join(EXPERIMENTS)} or {ALL}, got {target!r}")
    console = common.console()
    budget = (QUICK if quick else FULL).override(epochs, images, num_samples)
    chosen = None if pairs is None else parse_pairs(pairs, ())
    given = {"--seeds": seeds, "--pairs": pairs, "--epochs": epochs, "--images": images}
    given["--num-samples"] = num_samples
    words = [f"{name} {value}" for name, value in given.items() if value is not None]
    command = " ".join(["lipvae reproduce", target, *(["--quick"] if quick else []), *words])
    runner = Runner(
        out,
        budget,
        Images(root),
        common.pick_device(device),
        report=(lambda line: None) if quiet else lambda line: console.print(line),
        progress=common.progress_wanted(quiet),
    )
    for name in EXPERIMENTS if target == ALL else (target,):
        count = EXPERIMENTS[name].SEEDS[quick] if seeds is None else seeds
        try:
            written = run(name, runner, range(count), chosen, command)
        except KeyboardInterrupt:
            again = f"{command} --out {shlex.quote(str(out))}"
            common.say(f"stopped; go on by: {again}", stderr=True)
            raise typer.Exit(130) from None
        for path in (written.json, written.markdown, written.figure, written.page):
            if path is not None:
                common.say(str(path))
        if EXPERIMENTS[name].PLOTS and not have_matplotlib():
            console.print("no figure: pip install 'lipvae[plot]'")
