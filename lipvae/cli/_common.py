"""What the commands share: the console, errors, progress, and the scorer of the options."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from rich.text import Text
from tqdm import tqdm

import lipvae
from lipvae._decoder_dtype import DECODER_DTYPES
from lipvae.data import DataUnavailableError
from lipvae.inputs import Batch, Inputs, printable, read_all
from lipvae.models import VAE, BayesianVAE, Ensemble
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
)

P = ParamSpec("P")
R = TypeVar("R")


def print_version(wanted: bool) -> None:
    """Prints the version and leaves."""
    if wanted:
        typer.echo(f"lipvae {lipvae.__version__}")
        raise typer.Exit


def console(*, stderr: bool = False) -> Console:
    """A console that writes no colours, and lines wide enough for a table, into a pipe."""
    # Brackets and colons in names are not markup.
    found = Console(stderr=stderr, highlight=False, soft_wrap=False, markup=False, emoji=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = 120
    return found


def fail(message: object) -> typer.Exit:
    """Prints one error on stderr; raise what it returns."""
    lines = str(message).strip() or type(message).__name__
    text = Text.assemble(("error:", "bold red"), f" {printable(lines)}")
    console(stderr=True).print(text, soft_wrap=True)
    return typer.Exit(2)


def say(text: str, *, stderr: bool = False) -> None:
    """Prints a line as it is, however long; bytes of names that are not UTF-8 are escaped."""
    console(stderr=stderr).print(printable(text), soft_wrap=True)


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
        except (MemoryError, RuntimeError) as error:
            # torch's errors of a full memory are bare RuntimeErrors on a CPU.
            wanted = _lacking_memory(error)
            if wanted is None or os.environ.get("LIPVAE_DEBUG"):
                raise
            raise fail(wanted) from None

    return wrapped


def _lacking_memory(error: Exception) -> str | None:
    """What to tell of an error that says that the memory is full; None of another."""
    text = str(error)
    signs = ("can't allocate memory", "not enough memory", "size calculation overflowed")
    known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if not known and not any(sign in text for sign in signs):
        return None
    found = re.search(r"allocate ([\d.]+) (bytes|[KMGTPE]iB)", text)
    size = ""
    if found:
        amount, unit = found[1], found[2]
        amount, unit = (f"{int(amount) / 2**30:,.1f}", "GiB") if unit == "bytes" else (amount, unit)
        size = f" for {amount} {unit} more"
    return (
        f"not enough memory{size}: take a smaller --batch-size, fewer images, or for fit a smaller "
        "--latent-dim or --hidden"
    )


def pick_device(name: str) -> torch.device:
    """The device of an option."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"--device must be auto, cpu, cuda or cuda:N (an NVIDIA or AMD GPU), got {name!r}"
        ) from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(
            f"--device must be auto, cpu, cuda or cuda:N (an NVIDIA or AMD GPU), got {name!r}"
        )
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch finds no CUDA or ROCm GPU")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"--device {name}: the last GPU here is cuda:{count - 1}")
    return device


def load_model(path: Path, device: str) -> VAE | Ensemble:
    """The model in a file, or in a folder that ``lipvae fit`` wrote."""
    where = pick_device(device)
    if path.is_dir() and not (path / MODEL_FILE).exists():
        raise FileNotFoundError(
            f"MODEL must be a file or a folder of `lipvae fit`: {str(path)!r} holds no {MODEL_FILE}"
        )
    return load(path / MODEL_FILE if path.is_dir() else path, where)


def make_scorer(
    model: VAE | Ensemble,
    names: str | None,
    num_samples: int,
    seed: int,
    batch_size: int,
    training: Inputs | None = None,
    refine: int = 0,
    noise: str = "independent",
    decoder_dtype: str | None = None,
    num_draws: int | None = None,
) -> Scorer:
    """The scorer of the options.

    Args:
        model: what to score with.
        names: the option --scores.
        num_samples: K.
        seed: of the noise.
        batch_size: the option --batch-size.
        training: the images of the option --calibrate.
        refine: the option --refine.
        noise: the option --noise.
        decoder_dtype: the option --decoder-dtype.
        num_draws: the option --num-draws.
    """
    if num_draws is not None and not isinstance(model, Ensemble | BayesianVAE):
        raise ValueError("--num-draws is for an ensemble or a Bayesian model, got a single model")
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
    options["noise"], options["num_draws"] = noise, num_draws
    options["decoder_dtype"] = None if decoder_dtype is None else DECODER_DTYPES[decoder_dtype]
    scorer = Scorer(model, scores, **options)
    if training is not None:
        if isinstance(model, Ensemble):
            raise ValueError("--calibrate is for a single model, got an ensemble")
        if not any(SCORES[name].calibrated for name in scorer.names) and scores != ALL:
            known = ", ".join(score.name for score in SCORES.values() if score.calibrated)
            raise ValueError(
                f"--calibrate serves none of the scores {', '.join(scorer.names)}: add some of "
                f"{known} to --scores, or leave it out"
            )
        images = read_all(training)
        report_skipped(training)
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
    report_skipped(inputs)


def report_skipped(inputs: Inputs) -> None:
    """Names what was left out, on stderr."""
    for reason in inputs.skipped:
        say(f"skipped: {reason}", stderr=True)


def score_all(
    scorer: Scorer, inputs: Inputs, batch_size: int, quiet: bool
) -> dict[str, torch.Tensor]:
    """The scores of all images, [N] each."""
    parts = [scores for _, scores in score_inputs(scorer, inputs, batch_size, quiet)]
    return {name: torch.cat([part[name] for part in parts]) for name in scorer.names}
