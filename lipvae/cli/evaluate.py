"""``lipvae evaluate``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lipvae.cli import _common as common
from lipvae.cli import _options as options
from lipvae.cli._outputs import check_file
from lipvae.inputs import open_inputs, printable
from lipvae.models import BayesianVAE, Ensemble
from lipvae.report import check_picture, draw_histograms, metrics_table
from lipvae.report import evaluate as compare
from lipvae.scoring import Scorer


@common.user_errors
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of `lipvae fit`, or a model file.")],
    inliers: Annotated[
        str, typer.Option("--inliers", "-i", help="Images like those it was trained on.")
    ],
    outliers: Annotated[
        list[str], typer.Option("--outliers", "-u", help="Other images; may be repeated.")
    ],
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="Write the numbers to this file too; - for stdout alone."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw histograms of the scores to this .png, .pdf or .svg file."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take at most so many images of each set.")
    ] = None,
    scores: options.ScoreNames = None,
    num_samples: options.NumSamples = 128,
    num_draws: options.NumDraws = None,
    refine: options.Refine = 0,
    noise: options.Noise = "independent",
    calibrate: options.CalibrationImages = None,
    split: options.Split = "test",
    resize: options.Resize = False,
    skip_unreadable: options.SkipUnreadable = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 256,
    decoder_dtype: options.DecoderDtype = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure how well each score tells outliers from inliers.

    Prints AUROC, AUPRC (with the outliers, and with the inliers, as the positive class) and FPR80,
    in per cent.

    **Examples**

    - `lipvae evaluate model --inliers fashion-mnist --outliers mnist`
    - `lipvae evaluate model -i good.npy -u scratched/ -u near-black --json result.json`
    """
    alone = json_out is not None and str(json_out) == "-"
    check_file("--json", None if alone else json_out)
    check_file("--plot", plot)
    if plot is not None:
        check_picture("--plot", plot)
    loaded = common.load_model(model, device)
    shape = loaded.input_shape
    reading = partial(
        open_inputs, input_shape=shape, split=split, resize=resize, skip_unreadable=skip_unreadable
    )
    training = None if calibrate is None else reading(calibrate, split="train")
    inner, outer = reading(inliers), [reading(spec) for spec in outliers]
    names = [source.name for source in (inner, *outer)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"--inliers and --outliers must differ, got {', '.join(repeated)} twice")
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
    for source in (inner, *outer):
        source.limit(limit)
    found = compare(
        inner.name,
        common.score_all(scorer, inner, batch_size, quiet),
        {source.name: common.score_all(scorer, source, batch_size, quiet) for source in outer},
    )
    content = {
        "model": printable(model),
        **describe(scorer),
        **found.to_dict(),
    }
    title = f"{type(loaded).__name__}, K = {num_samples}"
    title += f", S = {content['num_draws']}" if content["num_draws"] else ""
    title += f", refine = {refine}" if refine else ""
    title += f", {noise} noise" if noise != "independent" else ""
    title += f", decoder in {decoder_dtype}" if decoder_dtype else ""
    if alone:
        typer.echo(json.dumps(content, indent=2))
    else:
        common.console().print(metrics_table(found, title))
        if json_out is not None:
            json_out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            common.say(f"numbers: {json_out}")
    if plot is not None:
        draw_histograms(found, plot, title)
        common.say(f"histograms: {plot}", stderr=True)


def describe(scorer: Scorer) -> dict[str, Any]:
    """What the numbers depend on, for JSON."""
    drawn = isinstance(scorer.model, Ensemble | BayesianVAE)
    return {
        "class": type(scorer.model).__name__,
        "config": getattr(scorer.model, "config", None),
        "num_samples": scorer.num_samples,
        "num_draws": scorer.num_draws if drawn else None,
        "seed": scorer.seed,
        "refine": scorer.refine,
        "noise": scorer.noise,
        "decoder_dtype": None if scorer.decoder_dtype is None else str(scorer.decoder_dtype),
    }
