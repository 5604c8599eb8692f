"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from lipvae._decoder_dtype import DECODER_DTYPES
from lipvae.scores import SCORES

# The last seed that torch's generators take.
MAX_SEED = 2**64 - 1

Device = Annotated[
    str,
    typer.Option(
        help="Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).",
        rich_help_panel="Computing",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=MAX_SEED, help="Of all random numbers.", rich_help_panel="Computing"),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="No progress bars and no remarks, only results. Files that --skip-unreadable leaves "
        "out are named all the same: their images have no result.",
    ),
]
ScoreNames = Annotated[
    str | None,
    typer.Option(
        "--scores",
        help=f"Scores to compute, separated by commas: {', '.join(SCORES)}; or all. "
        "By default those of one pass over the samples.",
        rich_help_panel="Scores",
    ),
]
NumSamples = Annotated[
    int,
    typer.Option(
        min=1, help="Latent samples K of each image: more is steadier.", rich_help_panel="Scores"
    ),
]
NumDraws = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Models of an ensemble, all by default, or draws of a Bayesian model's weights, 8.",
        rich_help_panel="Scores",
        show_default=False,
    ),
]
Refine = Annotated[
    int,
    typer.Option(
        min=0,
        help="Steps by which each image's latent mean goes up its own ELBO before it is sampled: "
        "slower, and another score.",
        rich_help_panel="Scores",
    ),
]
Noise = Annotated[
    str,
    typer.Option(
        help="independent samples, or sobol: evenly spread, for scores that hang less on the seed.",
        rich_help_panel="Scores",
    ),
]
DecoderDtype = Annotated[
    str | None,
    typer.Option(
        help=f"Round the decoder to {' or '.join(DECODER_DTYPES)}, where the hardware is faster "
        "with it. By default it keeps the model's precision.",
        rich_help_panel="Computing",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1,
        help="Images in memory at once. On a CPU no score but likelihood_regret depends on it.",
        rich_help_panel="Computing",
    ),
]
CalibrationImages = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        help="Training images, for scores that compare with them, which --scores has to name: "
        f"{', '.join(score.name for score in SCORES.values() if score.calibrated)}; or all.",
        rich_help_panel="Scores",
    ),
]
Split = Annotated[str, typer.Option(help="Split of data sets that are named without one.")]
Resize = Annotated[
    bool,
    typer.Option(
        "--resize",
        help="Scale image files to the model's size (fit: to the first image's) instead of "
        "refusing those of another size.",
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Leave out image files and folders that cannot be read, and name them, instead of "
        "stopping: damaged files, and those of another size unless they are resized.",
    ),
]
