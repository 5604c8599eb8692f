"""Projections of rows onto the L1 ball."""

from __future__ import annotations

import torch
from torch import Tensor


def sort_threshold(weight: Tensor, radius: float) -> Tensor:
    """Thresholds [rows, 1] from the sorted magnitudes (Duchi et al. 2008), as LNets finds them.

    LNets leaves out the last line, and inflates the rows that lie inside the ball.
    """
    descending = weight.abs().sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - radius
    count = torch.arange(1, weight.shape[1] + 1, device=weight.device, dtype=weight.dtype)
    active = (descending * count > excess).sum(1, keepdim=True).clamp(min=1)
    tau = excess.gather(1, active - 1) / active
    return tau.clamp(min=0)


def soft_threshold(weight: Tensor, tau: Tensor) -> Tensor:
    """sign(w) max(|w| - tau, 0)."""
    return weight.sign() * (weight.abs() - tau).relu()


def sort_projection(weight: Tensor, radius: float) -> Tensor:
    """Projection by sorting. As in LNets the threshold is a constant to autograd."""
    return soft_threshold(weight, sort_threshold(weight.detach(), radius))


def newton_step(magnitude: Tensor, tau: Tensor, radius: float) -> Tensor:
    """The next threshold: the one that fits the entries above the last."""
    above = magnitude > tau
    total = torch.where(above, magnitude, 0.0).sum(1, keepdim=True)
    count = above.sum(1, keepdim=True).clamp(min=1)
    return ((total - radius) / count).clamp(min=0)


def newton_steps(weight: Tensor, radius: float) -> int:
    """Steps after which no threshold moves any more."""
    magnitude = weight.abs()
    tau = magnitude.new_zeros(len(weight), 1)
    for step in range(1, 100):
        following = newton_step(magnitude, tau, radius)
        # The active set only shrinks; it has settled when the thresholds have, up to rounding.
        if torch.allclose(following, tau, rtol=4 * torch.finfo(weight.dtype).eps, atol=0):
            return step
        tau = following
    raise RuntimeError("Newton's method has not settled in 100 steps")


def newton_projection(weight: Tensor, radius: float, steps: int) -> Tensor:
    """Projection by Newton's method on the threshold, a fixed number of steps from zero.

    The count of steps comes from :func:`newton_steps`, outside the clock: the best case for a
    program without a branch that a compiler can fuse.
    """
    magnitude = weight.abs()
    tau = torch.zeros_like(weight[:, :1])
    for _ in range(steps):
        tau = newton_step(magnitude, tau, radius)
    return soft_threshold(weight, tau)


def newton_projection_exact_gradient(weight: Tensor, radius: float, steps: int) -> Tensor:
    """:func:`newton_projection`, differentiated through the last step alone.

    That step is an explicit function of the active entries, so the gradient is that of
    equation (3).
    """
    magnitude = weight.abs()
    with torch.no_grad():
        tau = torch.zeros_like(weight[:, :1])
        for _ in range(steps - 1):
            tau = newton_step(magnitude, tau, radius)
    return soft_threshold(weight, newton_step(magnitude, tau, radius))
