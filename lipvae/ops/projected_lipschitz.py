"""Lipschitz layers on a GPU whose weights are projected once for many products."""

from __future__ import annotations

from torch import Tensor

from lipvae import reference
from lipvae._backend import kernel_module
from lipvae.ops.group_sort import group_sort


class ProjectedLipschitzLinear:
    """The layer of equation (1) by the Triton kernels, as long as its weight stays as it is.

    One launch of two is saved. The product projects while it multiplies or takes the projected
    weight, whichever it does for as many rows otherwise, so outputs have the same bits.

    Args:
        weight: [out, in], float32, float16 or bfloat16.
        bias: [out] or None.
        radius: r > 0.
        group_size: g, a divisor of out; None leaves the sort out.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, radius: float, group_size: int | None
    ) -> None:
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._radius, self._group_size = radius, group_size
        self._projected, self._threshold = kernel_module("l1_ball").l1_ball_by_threshold(
            self._weight, radius
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] of the weight's dtype -> [N, out], without autograd."""
        fused = self._group_size if self._group_size in reference.NETWORKS else None
        y, _, _ = kernel_module("lipschitz_linear").lipschitz_linear_forward(
            x,
            self._weight,
            self._bias,
            self._radius,
            fused,
            record=False,
            threshold=self._threshold,
            projected=self._projected,
        )
        return y if fused == self._group_size else group_sort(y, self._group_size or 0, -1)
