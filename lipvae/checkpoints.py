"""Checkpoints of a training run: model, optimizer, generators, history."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lipvae.models import VAE
from lipvae.persistence import (
    model_description,
    model_tensors,
    read_archive,
    select,
    write_archive,
)

if TYPE_CHECKING:
    from lipvae.training import History


@dataclass
class Settings:
    """The arguments of `fit` that a continuation must share."""

    batch_size: int
    lr: float
    seed: int
    num_samples: int
    warmup: int
    schedule: str
    gradient_clip: float | None
    keep: str
    epochs: int
    images: int
    data: str


def fingerprint(images: Tensor) -> str:
    """Tells training sets apart, by some 256 images that are spread over the set."""
    some = images[:: max(1, len(images) // 256)].contiguous().cpu()
    return hashlib.sha256(some.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@dataclass
class State:
    """What changes during a run, besides the model and the optimizer."""

    order: torch.Generator
    noise: torch.Generator
    history: History
    best: dict[str, Tensor] | None = None


def write(
    path: Path, model: VAE, optimizer: torch.optim.Optimizer, settings: Settings, state: State
) -> None:
    """Writes the run as it is after an epoch."""
    tensors = model_tensors(model, "model.")
    names = [name for name, _ in model.named_parameters()]
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer.{names[index]}.{key}"] = value
    tensors["generator.order"] = state.order.get_state()
    tensors["generator.noise"] = state.noise.get_state()
    if state.best is not None:
        tensors |= {f"best.{name}": value for name, value in state.best.items()}
    content = model_description(model) | {
        "settings": asdict(settings),
        "history": state.history.to_dict(),
    }
    write_archive(path, "checkpoint", tensors, content)


def read(
    path: Path, model: VAE, optimizer: torch.optim.Optimizer, settings: Settings, state: State
) -> None:
    """Puts model, optimizer and state where the checkpoint left them.

    Raises:
        ValueError: if the file is damaged, or of another model, other data or other arguments.
    """
    kind, tensors, content = read_archive(path)
    if kind != "checkpoint":
        raise ValueError(f"checkpoint must be a file of lipvae.fit, got {str(path)!r}, a {kind}")
    _compare(path, model, settings, content)
    model.load_state_dict(select(tensors, "model."))
    packed = optimizer.state_dict()
    packed["state"] = {}
    for index, (name, _) in enumerate(model.named_parameters()):
        moments = select(tensors, f"optimizer.{name}.")
        if moments:
            packed["state"][index] = moments
    optimizer.load_state_dict(packed)
    state.order.set_state(tensors["generator.order"])
    state.noise.set_state(tensors["generator.noise"])
    for column, values in content["history"].items():
        getattr(state.history, column).extend(values)
    best = select(tensors, "best.")
    state.best = best or None


def _compare(path: Path, model: VAE, settings: Settings, content: dict[str, Any]) -> None:
    ours = model_description(model) | asdict(settings)
    theirs = {k: content.get(k) for k in ("class", "config")} | content.get("settings", {})
    for name, value in ours.items():
        got = theirs.get(name)
        if name == "epochs" and settings.schedule == "constant":
            continue  # a constant rate knows no end, so a run may be prolonged
        hint = ""
        if name in ("images", "data"):
            hint = " (other training images, or another share of them held out for validation)"
        if got != value:
            raise ValueError(
                f"checkpoint {str(path)!r} is of another run: its {name} is {got!r}, not {value!r}"
                + hint
            )
