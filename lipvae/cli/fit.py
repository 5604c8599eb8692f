"""``lipvae fit``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

import lipvae
from lipvae import data as sets
from lipvae.cli import _common as common
from lipvae.cli import _options as options
from lipvae.cli._outputs import check_folder
from lipvae.inputs import open_inputs, printable, read_all
from lipvae.models import VAE, BayesianVAE, Ensemble, HypersphericalVAE, LipschitzVAE
from lipvae.posteriors import fit_ensemble
from lipvae.posteriors.independent import member_checkpoint
from lipvae.training import History

CHECKPOINT_FILE = "checkpoint.safetensors"
HISTORY_FILE = "history.json"

_PLAIN = {"hyperspherical": HypersphericalVAE, "vanilla": VAE, "bayesian": BayesianVAE}

# Of z and of hidden layers. What is larger is a slip.
WIDEST = 2**16

_MODEL = "Model"
_TRAINING = "Training"


@common.user_errors
def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="Images to train on: a data set's NAME[:SPLIT], .npy, .npz or a folder of images."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its history.")],
    model: Annotated[
        str,
        typer.Option(
            help="lipschitz (compact latent space), hyperspherical (a sphere), vanilla or bayesian "
            "(random weights).",
            rich_help_panel=_MODEL,
        ),
    ] = "lipschitz",
    latent_dim: Annotated[
        int,
        typer.Option(
            min=1,
            max=WIDEST,
            help="Dimensions of z; hyperspherical: of the space around the sphere.",
            rich_help_panel=_MODEL,
        ),
    ] = 10,
    architecture: Annotated[
        str,
        typer.Option(
            help="conv, fc, or auto: conv from 16 x 16 pixels on.", rich_help_panel=_MODEL
        ),
    ] = "auto",
    hidden: Annotated[
        str | None,
        typer.Option(
            help="Widths of the layers, as in 512,512; conv: channels, then a width.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    likelihood: Annotated[
        str, typer.Option(help="Family of p(x|z).", rich_help_panel=_MODEL)
    ] = "bernoulli",
    lipschitz: Annotated[
        float | None,
        typer.Option(
            help="M of the encoder; by default floor(sqrt(latent_dim) + 2).",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    members: Annotated[
        int,
        typer.Option(
            min=1,
            help="Train so many models, with the seeds from --seed on: an ensemble, whose mean "
            "scores are steadier than those of any one.",
            rich_help_panel=_MODEL,
        ),
    ] = 1,
    epochs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Passes over the images, those of a resumed run included.",
            rich_help_panel=_TRAINING,
        ),
    ] = 10,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images of a step.", rich_help_panel=_TRAINING)
    ] = 128,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate; by default the model's.", rich_help_panel=_TRAINING),
    ] = None,
    warmup: Annotated[
        int,
        typer.Option(min=0, help="Epochs over which the KL grows.", rich_help_panel=_TRAINING),
    ] = 0,
    schedule: Annotated[
        str, typer.Option(help="constant or cosine.", rich_help_panel=_TRAINING)
    ] = "constant",
    keep: Annotated[
        str,
        typer.Option(help="last, or best by validation ELBO.", rich_help_panel=_TRAINING),
    ] = "last",
    validation: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Fraction held out.", rich_help_panel=_TRAINING),
    ] = 0.05,
    resize: options.Resize = False,
    skip_unreadable: options.SkipUnreadable = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in the folder.")
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Train a model on images of the inlier kind.

    The folder gets model.safetensors, checkpoint.safetensors (after every epoch) and history.json.
    The same seed and data give the same model on the same machine. With --members the model is an
    ensemble, and each of its models has a checkpoint.

    **Examples**

    - `lipvae fit fashion-mnist --out fashion --epochs 5`
    - `lipvae fit good_parts/ --out parts --model vanilla --latent-dim 16`
    - `lipvae fit photos/ --out photos_model --resize --skip-unreadable`
    - `lipvae fit fashion-mnist --out fashion --epochs 10 --resume`
    - `lipvae fit fashion-mnist --out three --members 3`
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if (out / common.MODEL_FILE).exists() and not (resume or overwrite):
        raise ValueError(f"--out: {out} holds a model already; add --resume or --overwrite")
    check_folder("--out", out)
    if seed + members - 1 > options.MAX_SEED:
        raise ValueError(
            f"--seed must leave a seed below 2**64 for each of {members} members, got {seed}"
        )
    checkpoint = out / CHECKPOINT_FILE
    first = checkpoint if members == 1 else member_checkpoint(checkpoint, 0)
    if first.is_file() and not (resume or overwrite):
        raise ValueError(
            f"--out: {out} holds the checkpoint of a run that was stopped; add --resume or "
            "--overwrite"
        )
    if resume and not first.is_file():
        raise ValueError(f"--resume: there is no {first.name} in {out}")
    where = common.pick_device(device)
    images = _load(data, resize, skip_unreadable)

    def make() -> VAE:
        return _build(
            model,
            tuple(images.shape[1:]),
            architecture,
            latent_dim,
            hidden,
            likelihood,
            lipschitz,
        )

    # Initialisation draws from the global generator, which no one else uses in this process. Built
    # before the folder is made: a bad option leaves nothing behind.
    torch.manual_seed(seed)
    model_0 = make()
    done: list[int] = []
    training: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "warmup": warmup,
        "schedule": _choice("--schedule", schedule, ("constant", "cosine")),
        "keep": _choice("--keep", keep, ("last", "best")),
        "validation": validation,
        "device": where,
        "seed": seed,
        "checkpoint": checkpoint,
        "resume": resume,
        "progress": common.progress_wanted(quiet),
        "callback": lambda epoch, history: done.append(epoch),
    }
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for path in (checkpoint, *out.glob(f"{checkpoint.stem}-[0-9]*{checkpoint.suffix}")):
            path.unlink(missing_ok=True)
    trained: VAE | Ensemble
    try:
        if members == 1:
            trained, histories = model_0, [lipvae.fit(model_0, images, **training)]
        else:
            trained, histories = fit_ensemble(make, images, size=members, **training)
    except KeyboardInterrupt:
        if first.is_file():
            common.say("stopped; go on by the same command and --resume", stderr=True)
        raise typer.Exit(130) from None
    models = trained.members if isinstance(trained, Ensemble) else (trained,)
    lipvae.save(trained, out / common.MODEL_FILE)
    content: dict[str, Any] = {"data": printable(data), "seed": seed, "config": models[0].config}
    if members == 1:
        content["history"] = histories[0].to_dict()
    else:
        content["members"] = [history.to_dict() for history in histories]
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
    (out / HISTORY_FILE).write_text(text + "\n", encoding="utf-8")
    if not quiet:
        for one, history in zip(models, histories, strict=True):
            _summarise(one, history)
        common.say(f"model: {out / common.MODEL_FILE}")
        if not done:
            common.say(
                f"note: nothing was trained: {first.name} has {len(histories[0])} epochs already "
                f"and --epochs asks for {epochs}, those included",
                stderr=True,
            )


def _without_nan(value: Any) -> Any:
    """What was not measured is null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _choice(option: str, value: str, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _load(spec: str, resize: bool, skip_unreadable: bool) -> torch.Tensor:
    """Images in memory: uint8 from a data set, float32 from files."""
    name, _, split = spec.partition(":")
    if name in sets.NAMES and not Path(spec).exists():
        chosen: Literal["train", "test"] = _choice(
            "the split in DATA", split or "train", ("train", "test")
        )
        return sets.load(name, chosen).images
    source = open_inputs(spec, split="train", resize=resize, skip_unreadable=skip_unreadable)
    images = read_all(source)
    common.report_skipped(source)
    return images


def _build(
    kind: str,
    shape: tuple[int, ...],
    architecture: str,
    latent_dim: int,
    hidden: str | None,
    likelihood: str,
    lipschitz: float | None,
) -> VAE:
    _choice("--model", kind, ("lipschitz", *_PLAIN))
    if architecture == "auto":
        architecture = "conv" if min(shape[1:]) >= 16 else "fc"
    widths = None
    if hidden is not None:
        try:
            widths = tuple(int(width) for width in hidden.split(","))
        except ValueError as error:
            raise ValueError(f"--hidden must be numbers, as in 512,512, got {hidden!r}") from error
        if not 1 <= min(widths) <= max(widths) <= WIDEST:
            raise ValueError(f"--hidden must be from 1 to {WIDEST}, got {hidden!r}")
    if kind != "lipschitz" and lipschitz is not None:
        raise ValueError(f"--lipschitz is for --model lipschitz, got it with {kind}")
    if kind != "lipschitz":
        return _PLAIN[kind](shape, latent_dim, architecture, widths, likelihood)
    return LipschitzVAE(shape, latent_dim, architecture, widths, likelihood, lipschitz)


def _summarise(model: VAE, history: History) -> None:
    console = common.console()
    validation = history.validation_elbo[-1]
    console.print(
        f"{type(model).__name__}, {len(history)} epochs in {sum(history.seconds):.0f} s: ELBO "
        f"{history.train_elbo[-1]:.2f} nats, "
        + (f"validation {validation:.2f}" if math.isfinite(validation) else "no validation images")
    )
    if isinstance(model, LipschitzVAE):
        certificate = model.certificate()
        console.print(
            f"certificate: the means are {certificate.lipschitz:.4g}-Lipschitz "
            f"(M = {certificate.bound:g}) and stay within {float(certificate.radius.max()):.4g} "
            "of their value at mid-grey"
        )
