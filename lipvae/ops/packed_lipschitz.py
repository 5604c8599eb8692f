"""The Lipschitz layer by one C++ call, and the layer as it is now with its weight packed.

Both multiply as :class:`lipvae.ops.panels.PackedLinear` does: an output row depends on its own
input row alone, bit for bit, whatever the batch and the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipvae import reference
from lipvae._backend import cpp_module
from lipvae._workers import kernel_threads
from lipvae.ops._common import CPU, dtype_code
from lipvae.ops.group_sort import group_sort
from lipvae.ops.l1_ball import usable
from lipvae.ops.panels import PackedLinear, check_bias, empty_panels


def cpp_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int,
    warm: Tensor | None,
    *,
    panels: Tensor | None = None,
    code: Tensor | None = None,
    recording: bool = False,
) -> tuple[Tensor, Tensor, Any]:
    """x [N, in] -> y [N, out], thresholds, record; group_size 0: no sort.

    `panels` and `code`, if given, are written: see :func:`lipvae.ops.panels.empty_panels` and
    :func:`lipvae.ops.group_sort.rows_code_shape`. With `recording` there is a record, all that
    :func:`cpp_backward` needs, and the thresholds are written over `warm`, if given.
    """
    x, weight = x.contiguous(), weight.contiguous()
    if bias is not None:
        check_bias(bias, weight)
        bias = bias.contiguous()
    rows, (columns, inner) = x.shape[0], weight.shape
    warm = usable(warm, weight)
    y = torch.empty(rows, columns, dtype=weight.dtype, device=CPU)
    # In a cache that a product has filled, making a tensor takes microseconds.
    if recording and warm is not None:
        threshold = warm
    else:
        threshold = torch.empty(columns, dtype=torch.float64, device=CPU)
    record = cpp_module().lipschitz_linear_forward(
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        radius,
        0 if warm is None else warm.data_ptr(),
        y.data_ptr(),
        threshold.data_ptr(),
        0 if panels is None else panels.data_ptr(),
        0 if code is None else code.data_ptr(),
        recording,
        rows,
        columns,
        inner,
        0 if panels is None else panels.shape[-1],
        group_size,
        dtype_code(weight),
        kernel_threads(),
    )
    return y, threshold, record


def cpp_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    group_size: int,
    needs: Sequence[bool],
    record: Any = None,
    *,
    threshold: Tensor | None = None,
    code: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, None for one that is not needed.

    They come from the `record` of the forward pass, or else from its thresholds and its code.
    """
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    dtype, (columns, inner) = weight.dtype, weight.shape
    grad_x = torch.empty(x.shape, dtype=dtype, device=CPU) if needs[0] else None
    grad_weight = torch.empty(columns, inner, dtype=dtype, device=CPU) if needs[1] else None
    grad_bias = torch.empty(columns, dtype=dtype, device=CPU) if needs[2] else None
    cpp_module().lipschitz_linear_backward(
        grad.data_ptr(),
        record,
        0 if code is None else code.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        0 if threshold is None else threshold.data_ptr(),
        0 if grad_x is None else grad_x.data_ptr(),
        0 if grad_weight is None else grad_weight.data_ptr(),
        0 if grad_bias is None else grad_bias.data_ptr(),
        x.shape[0],
        columns,
        inner,
        group_size,
        dtype_code(weight),
        kernel_threads(),
    )
    return grad_x, grad_weight, grad_bias


class PackedLipschitzLinear:
    """The layer GroupSort_g(P_r(W) x + b) as it is now: later changes of W and b do not reach it.

    Outputs are those of :func:`lipvae.ops.lipschitz_linear` on the C++ backend, bit for bit.

    Args:
        weight: [out, in], float32 or float64 on the CPU.
        bias: [out] of the same dtype, or None.
        radius: r > 0.
        group_size: g, a divisor of out; None leaves the sort out.
        warm: float64 [out], guesses of the rows' thresholds; they change the time, not the result.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        radius: float,
        group_size: int | None,
        warm: Tensor | None = None,
    ) -> None:
        weight = weight.detach()
        bias = None if bias is None else bias.detach()
        nothing = weight.new_empty(0, weight.shape[1])
        panels = empty_panels(weight)
        cpp_forward(nothing, weight, bias, radius, 0, warm, panels=panels)
        fused = group_size if group_size in reference.NETWORKS else None
        self._group_size = None if fused else group_size
        self._product = PackedLinear.of_panels(panels, weight.shape[0], fused or 0)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., N, in] of the weight's dtype -> [..., N, out], without autograd."""
        y = self._product(x)
        return y if self._group_size is None else group_sort(y, self._group_size, -1)
