"""SWAG: a normal distribution over the weights, fitted to a stretch of gradient descent."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lipvae import noise
from lipvae._moments import forget_tiny_moments
from lipvae._validate import check_count, check_positive
from lipvae.batches import Images, checked
from lipvae.models import VAE, Ensemble
from lipvae.posteriors import _steps


class SWAG:
    r"""Normal weights with a covariance that is half diagonal and half of low rank.

    From snapshots :math:`\theta_t` of the decoder's weights: the mean :math:`\bar\theta`, the
    diagonal :math:`\overline{\theta^2} - \bar\theta^2`, and the last R deviations
    :math:`\theta_t - \bar\theta_t` from the running mean as columns of D. Draws are

    .. math:: \theta = \bar\theta + \tfrac{1}{\sqrt 2} \Sigma_{diag}^{1/2} \epsilon_1
        + \tfrac{1}{\sqrt{2 (R - 1)}} D \epsilon_2.

    The encoder's weights, which parameterise no likelihood, are averaged.

    Args:
        model: the VAE whose weights are followed; it is not kept.
        rank: R, the largest number of deviations.

    Source: Maddox et al. 2019, algorithm 1; for VAEs Glazunov & Zarras 2022.

    Example:
        >>> import lipvae
        >>> model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
        >>> swag = SWAG(model, rank=2)
        >>> for _ in range(3):
        ...     swag.update(model)
        >>> len(swag.ensemble(4))
        4
    """

    def __init__(self, model: VAE, rank: int = 20) -> None:
        self.rank = check_count("rank", rank, 2)
        self._template = _steps.snapshot(_steps.check_model(model))
        self.count = 0
        self._names = [n for n, _ in model.named_parameters() if n.startswith(_steps.DECODER)]
        self._mean = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self._state(model)}
        self._square = {n: torch.zeros_like(self._mean[n]) for n in self._names}
        self._deviations: list[dict[str, Tensor]] = []

    @staticmethod
    def _state(model: VAE) -> list[tuple[str, Tensor]]:
        return [(name, p.detach()) for name, p in model.named_parameters()]

    @torch.no_grad()
    def update(self, model: VAE) -> None:
        """Adds a snapshot of the model's weights."""
        state = dict(self._state(model))
        if state.keys() != self._mean.keys():
            raise ValueError("model must have the weights of the one that SWAG was made for")
        self.count += 1
        for name, value in state.items():
            self._mean[name] += (value - self._mean[name]) / self.count
        for name in self._names:
            square = state[name].double().square()
            self._square[name] += (square - self._square[name]) / self.count
        deviation = {n: (state[n] - self._mean[n]).to(state[n].dtype) for n in self._names}
        self._deviations = [*self._deviations, deviation][-self.rank :]

    @torch.no_grad()
    def draw(self, index: int, seed: int = 0) -> VAE:
        """The model with the weights theta_s, s = index; it depends on (seed, index) alone.

        Raises:
            RuntimeError: before the second snapshot.
        """
        check_count("index", index, 0)
        columns = len(self._deviations)
        if columns < 2:
            raise RuntimeError(f"SWAG needs at least 2 snapshots, got {self.count}: call update()")
        low_rank = noise.standard_normal(seed, 1, columns, start=index, stream=1)[0]
        low_rank /= (2 * (columns - 1)) ** 0.5
        state = dict(self._mean)
        for stream, name in enumerate(self._names, 2):
            mean = self._mean[name]
            diagonal = (self._square[name] - mean.square()).clamp(min=0).sqrt()
            eps = noise.standard_normal(seed, 1, mean.numel(), start=index, stream=stream)
            value = mean + 0.5**0.5 * diagonal * eps.reshape(mean.shape).to(mean)
            for weight, deviation in zip(low_rank.tolist(), self._deviations, strict=True):
                value = value + weight * deviation[name]
            state[name] = value
        member = copy.deepcopy(self._template)
        member.load_state_dict(state)
        return member

    def ensemble(self, num_draws: int, seed: int = 0) -> Ensemble:
        """The models of :meth:`draw` for s = 0..num_draws - 1."""
        return Ensemble([self.draw(s, seed) for s in range(check_count("num_draws", num_draws))])


def fit_swag(
    model: VAE,
    data: Images,
    *,
    steps: int,
    interval: int,
    rank: int = 20,
    lr: float = 1e-5,
    momentum: float = 0.9,
    batch_size: int = 128,
    seed: int = 0,
) -> SWAG:
    """Goes on from a trained model by SGD at a constant rate and takes snapshots on the way.

    Args:
        model: trained by :func:`lipvae.fit`; it is moved along, and left in eval mode.
        data: as for :func:`lipvae.fit`.
        steps: gradient steps.
        interval: steps between snapshots; at least two snapshots must fit into `steps`.
        rank: see :class:`SWAG`.
        lr: learning rate for the negated ELBO in nats per image.
        momentum: of SGD, in [0, 1).
        batch_size: images of a step.
        seed: of the order and the noise.

    Raises:
        DivergenceError: if a loss is not finite.

    Source: Maddox et al. 2019, algorithm 1.

    Example:
        >>> import lipvae
        >>> model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
        >>> fit_swag(model, torch.rand(64, 1, 8, 8), steps=6, interval=2).count
        3
    """
    check_count("batch_size", batch_size)
    if check_count("steps", steps) < 2 * check_count("interval", interval):
        raise ValueError(f"steps must be at least 2 * interval = {2 * interval}, got {steps}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
    swag = SWAG(model, rank)
    checked("data", model, data)
    lr = check_positive("lr", lr)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    model.train()
    for step, loss in _steps.losses(model, data, batch_size, steps, seed):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        forget_tiny_moments(optimizer, step)
        if (step + 1) % interval == 0:
            swag.update(model)
    model.eval()
    return swag
