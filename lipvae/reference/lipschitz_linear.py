"""The Lipschitz layer, equation (1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from lipvae.reference.group_sort import group_sort
from lipvae.reference.l1_ball import project_l1_ball


def lipschitz_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    radius: float = 1.0,
    group_size: int | None = None,
) -> Tensor:
    r"""y = GroupSort_g(P_r(W) x + b), equation (1).

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out] or None.
        radius: radius r > 0; the layer is r-Lipschitz in L-infinity.
        group_size: g, a divisor of out; None leaves the sort out.

    Returns:
        [..., out].
    """
    y = linear(x, project_l1_ball(weight, radius), bias)
    return y if group_size is None else group_sort(y, group_size)
