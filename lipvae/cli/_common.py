"""What the commands share: options, the console, errors and progress."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from tqdm import tqdm

import lipvae
from lipvae._decoder_dtype import DECODER_DTYPES
from lipvae.data import DataUnavailableError
from lipvae.inputs import Batch, Inputs, open_inputs, read_all
from lipvae.models import VAE, Ensemble
from lipvae.persistence import load
from lipvae.scores import ALL, SCORES
from lipvae.scoring import NOISES, Scorer
from lipvae.training import DivergenceError

MODEL_FILE = "model.safetensors"

# What a user can put right. Everything else is a fault of the program and keeps its traceback.
_USER_ERRORS = (
    ValueError,
    OSError,
    DataUnavailableError,
    DivergenceError,
    ModuleNotFoundError,
    torch.cuda.OutOfMemoryError,
)

Device = Annotated[
    str,
    typer.Option(
        help="Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).",
        rich_help_panel="Computing",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, help="Of all random numbers.", rich_help_panel="Computing")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress bars and no remarks, only results."),
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
        help="Training images, for scores that compare with them: "
        f"{', '.join(score.name for score in SCORES.values() if score.calibrated)}.",
        rich_help_panel="Scores",
    ),
]
Split = Annotated[str, typer.Option(help="Split of data sets that are named without one.")]
Resize = Annotated[
    bool,
    typer.Option("--resize", help="Scale image files to the model's size instead of refusing."),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Leave out files of a folder that cannot be read, and name them, instead of stopping.",
    ),
]

P = ParamSpec("P")
R = TypeVar("R")


def print_version(wanted: bool) -> None:
    """Prints the version and leaves."""
    if wanted:
        typer.echo(f"lipvae {lipvae.__version__}")
        raise typer.Exit


def console(*, stderr: bool = False) -> Console:
    """A console that writes no colours, and lines wide enough for a table, into a pipe."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = 120
    return found


def fail(message: object) -> typer.Exit:
    """Prints one error on stderr; raise what it returns."""
    lines = str(message).strip() or type(message).__name__
    console(stderr=True).print(f"[bold red]error:[/bold red] {_plain(lines)}", soft_wrap=True)
    return typer.Exit(2)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turns errors that a user can put right into a message and exit code 2.

    The variable ``LIPVAE_DEBUG`` keeps the traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            # The reader has seen enough. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except _USER_ERRORS as error:
            if os.environ.get("LIPVAE_DEBUG"):
                raise
            raise fail(error) from None

    return wrapped


def pick_device(name: str) -> torch.device:
    """The device of an option."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch finds no CUDA or ROCm GPU")
    return device


def load_model(path: Path, device: str) -> VAE | Ensemble:
    """The model in a file, or in a folder that ``lipvae fit`` wrote."""
    return load(path / MODEL_FILE if path.is_dir() else path, pick_device(device))


def make_scorer(
    model: VAE | Ensemble,
    names: str | None,
    num_samples: int,
    seed: int,
    batch_size: int,
    training: str | None = None,
    refine: int = 0,
    noise: str = "independent",
    decoder_dtype: str | None = None,
) -> Scorer:
    """The scorer of the options.

    Args:
        model: what to score with.
        names: the option --scores.
        num_samples: K.
        seed: of the noise.
        batch_size: the option --batch-size.
        training: the option --calibrate.
        refine: the option --refine.
        noise: the option --noise.
        decoder_dtype: the option --decoder-dtype.
    """
    if noise not in NOISES:
        raise ValueError(f"--noise must be {' or '.join(NOISES)}, got {noise!r}")
    if decoder_dtype is not None and decoder_dtype not in DECODER_DTYPES:
        raise ValueError(
            f"--decoder-dtype must be {' or '.join(DECODER_DTYPES)}, got {decoder_dtype!r}"
        )
    scores: list[str] | str | None = names
    if names is not None:
        scores = [name.strip() for name in names.split(",") if name.strip()]
        scores = ALL if scores == [ALL] else scores
    options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "refine": refine}
    options["batch_size"] = min(batch_size, 64)
    options["noise"] = noise
    options["decoder_dtype"] = None if decoder_dtype is None else DECODER_DTYPES[decoder_dtype]
    scorer = Scorer(model, scores, **options)
    if training is not None:
        if isinstance(model, Ensemble):
            raise ValueError("--calibrate is for a single model, got an ensemble")
        images = read_all(open_inputs(training, model.input_shape, split="train"))
        scorer.calibrate(images)
        return Scorer(model, scores, **options, calibration=scorer.calibration)
    wanting = [name for name in scorer.names if SCORES[name].calibrated]
    if wanting:
        raise ValueError(f"--scores {','.join(wanting)} needs --calibrate with training images")
    return scorer


def progress_wanted(quiet: bool) -> bool:
    """Whether to show progress bars: not into a file, and not when asked to be quiet."""
    return not quiet and sys.stderr.isatty()


def progress_bar(total: int, what: str, quiet: bool, unit: str = "image") -> tqdm[Any]:
    """A progress bar on stderr."""
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        disable=not progress_wanted(quiet),
        dynamic_ncols=True,
        leave=False,
    )


def score_inputs(
    scorer: Scorer, inputs: Inputs, batch_size: int, quiet: bool
) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
    """Yields each batch with its scores, one batch in memory at a time.

    Says at the end what was skipped.
    """
    with progress_bar(len(inputs), inputs.name, quiet) as bar:
        for batch in inputs.batches(batch_size):
            (scores,) = scorer.stream([batch.images])
            yield batch, scores
            bar.update(len(batch.ids))
    for reason in inputs.skipped:
        console(stderr=True).print(f"skipped: {reason}", soft_wrap=True, markup=False)


def score_all(
    scorer: Scorer, inputs: Inputs, batch_size: int, quiet: bool
) -> dict[str, torch.Tensor]:
    """The scores of all images, [N] each."""
    parts = [scores for _, scores in score_inputs(scorer, inputs, batch_size, quiet)]
    return {name: torch.cat([part[name] for part in parts]) for name in scorer.names}


def check_folder(option: str, path: Path | None) -> None:
    """Before long work whose result goes there.

    Raises:
        FileNotFoundError: if the folder of a file to be written does not exist.
    """
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"{option}: there is no folder {str(path.parent)!r}")
