"""Stochastic gradient Hamiltonian Monte Carlo over the decoder's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipvae._moments import forget_tiny_moments
from lipvae._validate import check_count, check_positive
from lipvae.batches import Images, checked, generator
from lipvae.models import VAE, Ensemble
from lipvae.noise import normal_like
from lipvae.posteriors import _steps


@torch.no_grad()
def sghmc_step(
    positions: Sequence[Tensor],
    velocities: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    lr: float,
    friction: float,
    num_data: int,
    generator: torch.Generator | None = None,
) -> None:
    r"""One step in place: v <- (1 - a) v - e g + N(0, 2 a e / N), theta <- theta + v.

    With g the gradient of U / N, where U is the negative log posterior of N data, the chain's
    stationary distribution tends to exp(-U) for small e. The gradient's own noise is taken as zero.

    Args:
        positions: the weights theta.
        velocities: v, of the same shapes.
        gradients: g, likewise.
        lr: e > 0.
        friction: a in (0, 1].
        num_data: N.
        generator: source of the noise.

    Source: Chen, Fox & Guestrin 2014, equation 15.

    Example:
        >>> theta, v = torch.zeros(3), torch.zeros(3)
        >>> sghmc_step([theta], [v], [theta], lr=0.1, friction=0.1, num_data=1)
        >>> bool((theta == v).all())
        True
    """
    scale = (2 * friction * lr / num_data) ** 0.5
    for theta, v, g in zip(positions, velocities, gradients, strict=True):
        eps = normal_like(theta, theta.shape, generator)
        v.mul_(1 - friction).sub_(g, alpha=lr).add_(eps, alpha=scale)
        theta.add_(v)


def fit_sghmc(
    model: VAE,
    data: Images,
    *,
    num_draws: int,
    interval: int,
    burn_in: int = 0,
    lr: float = 1e-5,
    friction: float = 0.05,
    prior_scale: float = 1.0,
    encoder_lr: float = 1e-4,
    batch_size: int = 128,
    seed: int = 0,
) -> Ensemble:
    """Goes on from a trained model by SGHMC in the decoder's weights and keeps models on the way.

    The prior of the weights is N(0, prior_scale^2). The encoder, which is no part of the
    likelihood, follows by Adam.

    Args:
        model: trained by :func:`lipvae.fit`; it is moved along, and left in eval mode.
        data: as for :func:`lipvae.fit`.
        num_draws: S, the models to keep.
        interval: steps between them.
        burn_in: steps before.
        lr: e of :func:`sghmc_step`, for the negated ELBO in nats per image.
        friction: a of :func:`sghmc_step`.
        prior_scale: standard deviation of the weights' prior.
        encoder_lr: learning rate of the encoder.
        batch_size: images of a step.
        seed: of the order and of all noise.

    Raises:
        DivergenceError: if a loss is not finite.

    Source: Chen, Fox & Guestrin 2014; for VAEs Daxberger & Hernandez-Lobato 2019, Glazunov &
    Zarras 2022.

    Example:
        >>> import lipvae
        >>> model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
        >>> len(fit_sghmc(model, torch.rand(64, 1, 8, 8), num_draws=3, interval=2))
        3
    """
    _steps.check_model(model)
    images = checked("data", model, data)
    for name, value in (("num_draws", num_draws), ("interval", interval), ("batch", batch_size)):
        check_count(name, value)
    check_count("burn_in", burn_in, 0)
    precision = check_positive("prior_scale", prior_scale) ** -2 / len(images)
    if not 0 < check_positive("friction", friction) <= 1:
        raise ValueError(f"friction must be in (0, 1], got {friction!r}")
    named = list(model.named_parameters())
    decoder = [p for name, p in named if name.startswith(_steps.DECODER)]
    encoder = [p for name, p in named if not name.startswith(_steps.DECODER)]
    optimizer = torch.optim.Adam(encoder, lr=check_positive("encoder_lr", encoder_lr))
    velocities = [torch.zeros_like(p) for p in decoder]
    thermal = generator(seed, 6)
    kept: list[VAE] = []
    steps = burn_in + num_draws * interval
    model.train()
    for step, loss in _steps.losses(model, images, batch_size, steps, seed):
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        forget_tiny_moments(optimizer, step)
        gradients = []
        for p in decoder:
            assert p.grad is not None
            gradients.append(p.grad.add(p.detach(), alpha=precision))
        sghmc_step(
            decoder,
            velocities,
            gradients,
            lr=check_positive("lr", lr),
            friction=friction,
            num_data=len(images),
            generator=thermal,
        )
        if step >= burn_in and (step - burn_in + 1) % interval == 0:
            kept.append(_steps.snapshot(model))
    model.eval()
    return Ensemble(kept)
