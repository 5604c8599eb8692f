"""Training by the evidence lower bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from lipvae import batches, checkpoints
from lipvae._convolutions import repeatable_convolutions
from lipvae._moments import forget_tiny_moments
from lipvae._validate import check_count, check_positive, describe
from lipvae.batches import Images, generator
from lipvae.models import VAE
from lipvae.nn import frozen
from lipvae.persistence import StrPath

EVALUATION_BATCH = 512


class DivergenceError(RuntimeError):
    """Training met a loss or a weight that is not finite."""


@dataclass
class History:
    """What :func:`fit` saw, one entry an epoch. ELBOs are in nats per image.

    Attributes:
        train_elbo: mean over the epoch's batches, as the weights were at each.
        train_kl: mean KL divergence likewise.
        validation_elbo: at the end of the epoch; NaN without validation images.
        learning_rate: of the epoch's last step.
        seconds: wall time, validation included.
    """

    train_elbo: list[float] = field(default_factory=list)
    train_kl: list[float] = field(default_factory=list)
    validation_elbo: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.train_elbo)

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 0, of the highest validation ELBO; None without validation."""
        scores = [e if math.isfinite(e) else -math.inf for e in self.validation_elbo]
        if not scores or max(scores) == -math.inf:
            return None
        return scores.index(max(scores))

    def to_dict(self) -> dict[str, list[float]]:
        """The columns by name."""
        return asdict(self)


@dataclass
class _Run:
    """What one call of `fit` carries from step to step."""

    model: VAE
    optimizer: torch.optim.Optimizer
    terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    train: Tensor
    validation: Tensor | None
    settings: checkpoints.Settings
    state: checkpoints.State
    checkpoint: Path | None


def fit(
    model: VAE,
    data: Images,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    validation: float | Images = 0.05,
    num_samples: int = 1,
    warmup: int = 0,
    schedule: Literal["constant", "cosine"] = "constant",
    gradient_clip: float | None = None,
    keep: Literal["last", "best"] = "last",
    checkpoint: StrPath | None = None,
    resume: bool = False,
    compile: bool = False,
    progress: bool = True,
    callback: Callable[[int, History], bool | None] | None = None,
) -> History:
    """Trains a model by Adam on the evidence lower bound.

    The same seed, data and arguments give the same weights on the same machine; the order of the
    images and the noise have generators of their own, and the global one is left alone.

    Args:
        model: trained in place, left on `device` and in eval mode.
        data: images [N, C, H, W], uint8, or floating point in [0, 1]; a tensor, an array or an
            ImageSet. They are kept on the device as they come.
        epochs: passes over the data, those before a resumed checkpoint included.
        batch_size: images of a step; the last one of an epoch may have fewer.
        lr: learning rate; by default the model's own `default_learning_rate`.
        device: where to train; by default where the model is.
        seed: of the validation split, the order and the noise.
        validation: the fraction in [0, 1) of `data` to hold out, or images.
        num_samples: samples of z for each image and step.
        warmup: epochs over which the weight of the KL terms rises linearly from 0 to 1, that of
            random weights included.
        schedule: "constant", or "cosine" from `lr` to 0 over all epochs.
        gradient_clip: largest L2 norm of the gradient; None for no limit.
        keep: "last" weights, or those of the "best" validation ELBO.
        checkpoint: a file that is rewritten, whole or not at all, after each epoch.
        resume: continue from `checkpoint` if the file is there. The continuation is the run that
            was interrupted, bit for bit.
        compile: run the ELBO through torch.compile.
        progress: show a progress bar.
        callback: called after each epoch with its number, from 0, and the history so far;
            training stops where it returns True.

    Returns:
        The history, of the resumed epochs too.

    Raises:
        TypeError, ValueError: for arguments that do not fit the model or one another.
        DivergenceError: at the first loss that is not finite. On a CPU the model keeps the weights
            before that step; the checkpoint keeps those of the last whole epoch.

    Example:
        >>> import lipvae, torch
        >>> model = lipvae.LipschitzVAE((1, 8, 8), 2, architecture="fc", hidden=(32,))
        >>> history = lipvae.fit(model, torch.rand(256, 1, 8, 8), epochs=2, progress=False)
        >>> len(history)
        2
    """
    if not isinstance(model, VAE):
        raise TypeError(f"model must be a lipvae model, got {describe(model)}")
    settings = checkpoints.Settings(
        batch_size=check_count("batch_size", batch_size),
        lr=model.default_learning_rate if lr is None else check_positive("lr", lr),
        seed=check_count("seed", seed, 0),
        num_samples=check_count("num_samples", num_samples),
        warmup=check_count("warmup", warmup, 0),
        schedule=_choice("schedule", schedule, ("constant", "cosine")),
        gradient_clip=(
            None if gradient_clip is None else check_positive("gradient_clip", gradient_clip)
        ),
        keep=_choice("keep", keep, ("last", "best")),
        epochs=check_count("epochs", epochs),
        images=0,
        data="",
    )
    if resume and checkpoint is None:
        raise ValueError("resume needs a checkpoint, got None")
    train, held_out = batches.split(model, data, validation, seed)
    if keep == "best" and held_out is None:
        raise ValueError("keep='best' needs validation images, got validation=0")
    settings.images, settings.data = len(train), checkpoints.fingerprint(train)
    if device is not None:
        model.to(device)
    where = next(model.parameters()).device
    run = _Run(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True),
        terms=torch.compile(model.elbo_terms) if compile else model.elbo_terms,
        train=train.to(where),
        validation=None if held_out is None else held_out.to(where),
        settings=settings,
        state=checkpoints.State(generator(seed, 1), generator(seed, 2), History()),
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )
    if resume and run.checkpoint is not None and run.checkpoint.is_file():
        checkpoints.read(run.checkpoint, model, run.optimizer, settings, run.state)
    with repeatable_convolutions(where):
        _train(run, progress, callback)
    if run.state.best is not None:
        model.load_state_dict(run.state.best)
    model.eval()
    return run.state.history


def _train(
    run: _Run, progress: bool, callback: Callable[[int, History], bool | None] | None
) -> None:
    history, settings = run.state.history, run.settings
    steps = math.ceil(len(run.train) / settings.batch_size)
    bar = tqdm(
        total=settings.epochs * steps,
        initial=len(history) * steps,
        disable=not progress,
        unit="step",
        dynamic_ncols=True,
    )
    with bar:
        for epoch in range(len(history), settings.epochs):
            start = time.perf_counter()
            elbo, kl = _epoch(run, epoch, steps, bar)
            _check_weights(run, epoch)
            validation = math.nan if run.validation is None else _evaluate(run, run.validation)
            history.train_elbo.append(elbo)
            history.train_kl.append(kl)
            history.validation_elbo.append(validation)
            history.learning_rate.append(run.optimizer.param_groups[0]["lr"])
            history.seconds.append(time.perf_counter() - start)
            if settings.keep == "best" and history.best_epoch == epoch:
                state = run.model.state_dict()
                run.state.best = {name: value.clone() for name, value in state.items()}
            if run.checkpoint is not None:
                checkpoints.write(run.checkpoint, run.model, run.optimizer, settings, run.state)
            bar.set_postfix(epoch=epoch + 1, elbo=f"{elbo:.2f}", validation=f"{validation:.2f}")
            if callback is not None and callback(epoch, history):
                break


def _epoch(run: _Run, epoch: int, steps: int, bar: tqdm[Any]) -> tuple[float, float]:
    """One pass over the training images: mean ELBO and mean KL."""
    model, settings = run.model, run.settings
    model.train()
    device = run.train.device
    order = torch.randperm(len(run.train), generator=run.state.order, device="cpu").to(device)
    interval = check_interval(device)
    losses = torch.zeros(steps, device=device, dtype=torch.float64)
    totals = torch.zeros(2, device=device, dtype=torch.float64)
    for step, index in enumerate(order.split(settings.batch_size)):
        position = epoch * steps + step
        lr = _learning_rate(settings, position / (settings.epochs * steps))
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        x = batches.as_input(run.train[index], next(model.parameters()))
        noise = model.draw_noise(settings.num_samples, len(x), run.state.noise)
        model.redraw(run.state.noise)
        log_likelihood, kl = run.terms(x, noise)
        weight = min(1.0, (position + 1) / (settings.warmup * steps)) if settings.warmup else 1.0
        loss = (weight * kl - log_likelihood).mean()
        weight_kl = model.weight_kl()
        if weight_kl is not None:
            loss = loss + weight * (weight_kl / len(run.train)).to(loss.dtype)
        losses[step] = loss.detach()
        if (step + 1) % interval == 0 or step + 1 == steps:
            _check_losses(run, losses, step - step % interval, step + 1, epoch, lr)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        run.optimizer.step()
        forget_tiny_moments(run.optimizer, position)
        with torch.no_grad():
            totals += torch.stack([(log_likelihood - kl).sum(), kl.sum()]).double()
        bar.update()
    elbo, kl_mean = (totals / len(run.train)).tolist()
    return elbo, kl_mean


def _learning_rate(settings: checkpoints.Settings, progress: float) -> float:
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))


def check_interval(device: torch.device) -> int:
    """After how many steps losses are checked: to read one is to wait for a GPU."""
    return 1 if device.type == "cpu" else 32


def _check_losses(run: _Run, losses: Tensor, first: int, last: int, epoch: int, lr: float) -> None:
    values = losses[first:last].tolist()
    for step, loss in enumerate(values, first):
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss became {loss} at epoch {epoch + 1}, step {step + 1} of {len(losses)} "
                f"(learning rate {lr:g}). {_advice(run, epoch)}"
            )


def _check_weights(run: _Run, epoch: int) -> None:
    """The last step may have spoiled the weights without a loss to show it."""
    for name, parameter in run.model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            lr = run.optimizer.param_groups[0]["lr"]
            raise DivergenceError(
                f"{name} was not finite after epoch {epoch + 1} (learning rate {lr:g}). "
                f"{_advice(run, epoch)}"
            )


def _advice(run: _Run, epoch: int) -> str:
    advice = "Try a lower lr, gradient_clip=10.0, or warmup=1"
    if run.model.likelihood.name == "gaussian":
        advice += ", or another likelihood: a Gaussian's density has no upper bound"
    if run.checkpoint is not None and epoch:
        advice += f". {str(run.checkpoint)!r} holds the state after epoch {epoch}"
    return advice + "."


@torch.no_grad()
def _evaluate(run: _Run, images: Tensor) -> float:
    """Mean ELBO with the same noise in every epoch."""
    model = run.model
    model.eval()
    total = torch.zeros((), device=images.device, dtype=torch.float64)
    noise = generator(run.settings.seed, 3)
    with frozen(model):
        for index in batches.slices(len(images), EVALUATION_BATCH):
            x = batches.as_input(images[index], next(model.parameters()))
            total += model.elbo(x, run.settings.num_samples, noise).double().sum()
    return float(total) / len(images)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
