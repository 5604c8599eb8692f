"""Euclidean projection of each row onto the L1 ball, equations (1) and (3), by sorting."""

from __future__ import annotations

import torch
from torch import Tensor


def _depth(weight: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: max |w|, its distance delta to the threshold, and whether the row lies outside.

    Everything is measured down from the largest magnitude. Where r << max |w| the difference
    |w| - tau would cancel; delta - (max |w| - |w|) does not.
    """
    magnitude = weight.abs().to(torch.float64)
    if not weight.shape[-1]:
        zero = magnitude.new_zeros(weight.shape[0], 1)
        return zero, zero, zero.bool()
    peak = magnitude.amax(-1, keepdim=True)
    ascending = (peak - magnitude).sort(dim=-1).values
    filled = ascending.cumsum(-1) + radius
    count = torch.arange(1, weight.shape[-1] + 1, device=weight.device, dtype=torch.float64)
    active = (filled > ascending * count).sum(-1, keepdim=True).clamp(min=1)
    delta = filled.gather(-1, active - 1) / active
    return peak, delta, magnitude.sum(-1, keepdim=True) > radius


def l1_ball_threshold(weight: Tensor, radius: float = 1.0) -> Tensor:
    r"""Threshold :math:`\tau` of each row, equation (1).

    With the magnitudes of a row sorted in descending order, :math:`u_1 \ge u_2 \ge \dots`, the
    active set A is the longest prefix with :math:`k\,u_k > \sum_{i\le k} u_i - r`, and
    :math:`\tau = (\sum_{i \in A} u_i - r)/|A|` (Duchi et al. 2008, figure 1). A row inside the
    ball has :math:`\tau = 0`.

    Args:
        weight: [rows, cols].
        radius: radius r > 0 of the ball.

    Returns:
        float64 [rows], whatever the dtype of `weight`: in float32 the threshold of a row with
        large entries and a small ball would lose the row sum.
    """
    peak, delta, outside = _depth(weight, radius)
    return torch.where(outside, (peak - delta).clamp(min=0.0), torch.zeros_like(peak)).squeeze(-1)


def project_l1_ball(weight: Tensor, radius: float = 1.0) -> Tensor:
    r"""Projection :math:`\mathrm{sign}(w)\max(|w| - \tau, 0)` of each row, equation (1).

    Ordinary autograd gives the gradient of equation (3), because the threshold is an explicit
    function of the active entries.

    Args:
        weight: [rows, cols].
        radius: radius r > 0 of the ball.

    Returns:
        [rows, cols] in the dtype of `weight`.
    """
    peak, delta, outside = _depth(weight, radius)
    shrunk = torch.relu(delta - (peak - weight.abs().to(torch.float64)))
    return torch.where(outside, weight.sign() * shrunk.to(weight.dtype), weight)


def project_l1_ball_backward(grad: Tensor, weight: Tensor, radius: float = 1.0) -> Tensor:
    r"""Gradient of the projection, equation (3), written out.

    With :math:`A = \{i : |w_i| > \tau\}` and :math:`s = \mathrm{sign}(w)`,
    :math:`\nabla_i = g_i - s_i\,\mathrm{mean}_{j \in A}(s_j g_j)` on A and 0 off A; a row inside
    the ball passes the gradient through.

    Args:
        grad: [rows, cols], gradient with respect to the projected weight.
        weight: [rows, cols].
        radius: radius r > 0 of the ball.

    Returns:
        [rows, cols], gradient with respect to `weight`.
    """
    tau = l1_ball_threshold(weight, radius).unsqueeze(-1)
    active = (weight.abs().to(torch.float64) > tau).to(grad.dtype)
    sign = weight.sign()
    mean = (sign * grad * active).sum(-1, keepdim=True) / active.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(tau > 0, active * (grad - sign * mean), grad)
