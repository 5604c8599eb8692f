"""Weights as training leaves them: after a short run on patches of scikit-learn's photographs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

import lipvae
from lipvae._moments import forget_tiny_moments
from lipvae.nn import LipschitzLinear

# Most of the projected weight is zero after twenty.
STEPS = 200
BATCH, SIDE, COUNT = 128, 28, 2560


@functools.cache
def patches(
    device: str, input_shape: tuple[int, int, int] = (1, SIDE, SIDE), n: int = COUNT, seed: int = 0
) -> Tensor:
    """[n, *input_shape], grey or in colour."""
    channels, *size = input_shape
    found = lipvae.data.photo_patches((size[0], size[1]), n, seed, channels=channels)
    return found.float().to(device)


def stepping(model: lipvae.VAE, images: Tensor) -> Callable[[], None]:
    """One step of :func:`lipvae.fit`: forward pass, backward pass and Adam, on the next batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    following = itertools.cycle(images.split(BATCH)).__next__
    count = itertools.count()
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        loss = -model.elbo(following()).mean()
        loss.backward()
        optimizer.step()
        forget_tiny_moments(optimizer, next(count))

    return run


@functools.cache
def trained_vae(
    device: str,
    hidden: tuple[int, ...] | None,
    input_shape: tuple[int, int, int] = (1, SIDE, SIDE),
    latent_dim: int = 10,
) -> lipvae.LipschitzVAE:
    """A model after STEPS steps, fully connected; convolutional if `hidden` is None."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = lipvae.LipschitzVAE(
            input_shape, latent_dim, "fc" if hidden else "conv", hidden
        ).to(device)  # fmt: skip
        step = stepping(model, patches(device, input_shape))
        for _ in range(STEPS):
            step()
    return model.eval()


def trained_layers(width: int, device: str) -> tuple[LipschitzLinear, ...]:
    """The hidden layers of a Lipschitz encoder, 784 -> width -> width, after STEPS steps."""
    model = trained_vae(device, (width, width))
    found = [m for m in model.modules() if isinstance(m, LipschitzLinear)]
    return tuple(found[:2])


def density(layer: LipschitzLinear) -> float:
    """Share of the projected weight that is not zero."""
    projected, _ = lipvae.ops.l1_ball(layer.weight.detach(), layer.lipschitz)
    return float((projected != 0).float().mean())
