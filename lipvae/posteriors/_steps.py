"""The gradient steps that SWAG and SGHMC share."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipvae import batches
from lipvae._validate import describe
from lipvae.batches import Images, generator
from lipvae.models import VAE
from lipvae.training import DivergenceError, check_interval

DECODER = "decoder."


def check_model(model: object) -> VAE:
    """Requires a VAE with ordinary weights."""
    if not isinstance(model, VAE):
        raise TypeError(f"model must be a lipvae model, got {describe(model)}")
    if model.weight_kl() is not None:
        raise TypeError(
            f"model must have ordinary weights, got a {type(model).__name__}, which draws its own "
            "ensemble"
        )
    return model


def losses(
    model: VAE, data: Images, batch_size: int, steps: int, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields step and loss, the negated ELBO of a batch in nats per image.

    The caller takes the gradient before it asks for the next. The order of the images and the
    noise depend on the seed alone.

    Raises:
        DivergenceError: if a loss is not finite; on a GPU, which is not waited for in every step,
            up to 31 steps later.
    """
    images = batches.checked("data", model, data)
    like = next(model.parameters())
    images = images.to(like.device)
    order, noise = generator(seed, 4), generator(seed, 5)
    waiting = torch.empty(0, dtype=torch.int64, device="cpu")
    interval = check_interval(like.device)
    unchecked: list[Tensor] = []
    for step in range(steps):
        while len(waiting) < min(batch_size, len(images)):
            waiting = torch.cat(
                [waiting, torch.randperm(len(images), generator=order, device="cpu")]
            )
        index, waiting = waiting[:batch_size], waiting[batch_size:]
        x = batches.as_input(images[index.to(images.device)], like)
        loss = -model.elbo(x, generator=noise).mean()
        unchecked.append(loss.detach())
        if len(unchecked) == interval or step + 1 == steps:
            _check_losses(unchecked, step + 1 - len(unchecked))
            unchecked.clear()
        yield step, loss


def _check_losses(losses: list[Tensor], first: int) -> None:
    for step, loss in enumerate(torch.stack(losses).tolist(), first + 1):
        if not math.isfinite(loss):
            raise DivergenceError(f"the loss became {loss} at step {step}; lower lr")


def snapshot(model: VAE) -> VAE:
    """A copy in evaluation mode."""
    return copy.deepcopy(model).eval()
