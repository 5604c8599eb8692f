"""``lipvae score``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lipvae.cli import _common as common
from lipvae.cli import _options as options
from lipvae.cli._writers import check_out, open_writer
from lipvae.conformal import p_values
from lipvae.inputs import UnreadableError, open_inputs

# The share of false alarms that --help speaks of, and the images without which none can be as rare.
LEVEL = 0.01
FEWEST_INLIERS = round(1 / LEVEL) - 1


@common.user_errors
def score(
    model: Annotated[Path, typer.Argument(help="Folder of `lipvae fit`, or a model file.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images: .npy, .npz (FILE.npz:KEY), a folder or file of images, or a data set's "
            "NAME[:SPLIT]."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .csv or .parquet file. CSV to stdout by default."),
    ] = None,
    scores: options.ScoreNames = None,
    num_samples: options.NumSamples = 128,
    num_draws: options.NumDraws = None,
    refine: options.Refine = 0,
    noise: options.Noise = "independent",
    calibrate: options.CalibrationImages = None,
    inliers: Annotated[
        str | None,
        typer.Option(
            help="Images that should pass, and that the model was not trained on: adds a column "
            "NAME_p for each score, the share of such images that score as high. Flagging what is "
            "at most 0.01 gives a false alarm in a hundred, and takes 99 such images or more.",
            rich_help_panel="Scores",
        ),
    ] = None,
    split: options.Split = "test",
    resize: options.Resize = False,
    skip_unreadable: options.SkipUnreadable = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 256,
    decoder_dtype: options.DecoderDtype = None,
    quiet: options.Quiet = False,
) -> None:
    """Score images: one row each, higher is more out-of-distribution.

    Files are read a batch at a time, so they may be larger than memory. The same image gets the
    same scores whatever else is scored with it (likelihood_regret up to its last digits).

    **Examples**

    - `lipvae score model photos/ --out scores.csv`
    - `lipvae score model day1.npy day2.npz:images --scores hole_indicator -o s.parquet`
    - `lipvae score model photos/ --inliers good_photos/ -o scores.csv`
    - `lipvae score model mnist:test | sort -t, -k3 -g | tail`
    """
    check_out(out)
    loaded = common.load_model(model, device)
    shape = loaded.input_shape
    reading = partial(
        open_inputs, input_shape=shape, split=split, resize=resize, skip_unreadable=skip_unreadable
    )
    sources = [reading(spec) for spec in inputs]
    training = None if calibrate is None else reading(calibrate, split="train")
    held_out = None if inliers is None else reading(inliers)
    scorer = common.make_scorer(
        loaded,
        scores,
        num_samples,
        seed,
        batch_size,
        training,
        refine,
        noise,
        decoder_dtype,
        num_draws,
    )
    passing = {}
    if held_out is not None:
        passing = common.score_all(scorer, held_out, batch_size, quiet)
        if not quiet:
            _remark_few(len(next(iter(passing.values()))))
    rows = 0
    with open_writer(out, [*scorer.names, *(f"{name}_p" for name in passing)]) as writer:
        for source in sources:
            try:
                for batch, values in common.score_inputs(scorer, source, batch_size, quiet):
                    values |= {f"{n}_p": p_values(values[n], known) for n, known in passing.items()}
                    writer.write(source.name, batch.ids, values)
                    rows += len(batch.ids)
            except UnreadableError:
                # One file of several that were named is like one file of a folder.
                if not skip_unreadable or (source is sources[-1] and not rows):
                    raise
                common.report_skipped(source)
    if out is not None and not quiet:
        common.say(f"{rows} images scored: {out}", stderr=True)


def _remark_few(inliers: int) -> None:
    if inliers < FEWEST_INLIERS:
        common.say(
            f"note: --inliers has {inliers} images, so no p-value is below {1 / (inliers + 1):.2g} "
            f"and none at most {LEVEL:g}: that takes {FEWEST_INLIERS} images (1 / {LEVEL:g} - 1)",
            stderr=True,
        )
