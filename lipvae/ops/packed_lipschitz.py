"""The Lipschitz layer by one C++ call, and the layer as it is now with its weight packed.

Both multiply as :class:`lipvae.ops.panels.PackedLinear` does: an output row depends on its own
input row alone, bit for bit, whatever the batch and the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipvae import reference
from lipvae._backend import cpp_module
from lipvae._workers import kernel_threads
from lipvae.ops._common import CPU, dtype_code
from lipvae.ops.group_sort import group_sort
from lipvae.ops.panels import PackedLinear, empty_panels


def cpp_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    radius: float,
    group_size: int,
    warm: Tensor | None,
    *,
    record: bool = False,
    project: bool = False,
    listing: bool = False,
    panels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """x [N, in] -> y [N, out], thresholds, projected weight, code, entries; group_size 0: no sort.

    There is no projected weight without `project` and no code without a sort or without `record`.
    With `listing` a projected weight with few entries comes as a list of them, for
    :func:`cpp_backward`, and not as a matrix. `panels`, if given, are written: see
    :func:`lipvae.ops.panels.empty_panels`.
    """
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    rows, (columns, inner) = x.shape[0], weight.shape
    # All by one function: each other one would be fetched into a cache that a product has filled.
    y = torch.empty(rows, columns, dtype=weight.dtype, device=CPU)
    threshold = torch.empty(columns, dtype=torch.float64, device=CPU)
    projected = torch.empty(columns, inner, dtype=weight.dtype, device=CPU) if project else None
    code = None
    if record and group_size:
        comparators = len(reference.NETWORKS[group_size])
        shape = (comparators, rows, (columns // group_size + 7) // 8)
        code = torch.empty(shape, dtype=torch.uint8, device=CPU)
    extension, entries = cpp_module(), None
    if listing:
        size = extension.entries_bytes(columns, inner, dtype_code(weight))
        entries = torch.empty(size, dtype=torch.uint8, device=CPU)
    listed = extension.lipschitz_linear_forward(
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        radius,
        0 if warm is None else warm.data_ptr(),
        y.data_ptr(),
        threshold.data_ptr(),
        0 if projected is None else projected.data_ptr(),
        0 if panels is None else panels.data_ptr(),
        0 if code is None else code.data_ptr(),
        0 if entries is None else entries.data_ptr(),
        rows,
        columns,
        inner,
        0 if panels is None else panels.shape[-1],
        group_size,
        dtype_code(weight),
        kernel_threads(),
    )
    if listing and listed:
        return y, threshold, None, code, entries
    return y, threshold, projected, code, None


def cpp_backward(
    grad: Tensor,
    x: Tensor,
    entries: Tensor,
    threshold: Tensor,
    *,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of the weight, without the sort, where the weight came as `entries`."""
    grad, x = grad.contiguous(), x.contiguous()
    (rows, inner), columns = x.shape, grad.shape[1]
    grad_x = torch.empty_like(x) if needs_x else None
    grad_weight = torch.empty(columns, inner, dtype=x.dtype, device=CPU) if needs_weight else None
    cpp_module().lipschitz_linear_backward(
        grad.data_ptr(),
        x.data_ptr(),
        entries.data_ptr(),
        threshold.data_ptr(),
        0 if grad_x is None else grad_x.data_ptr(),
        0 if grad_weight is None else grad_weight.data_ptr(),
        rows,
        columns,
        inner,
        dtype_code(x),
        kernel_threads(),
    )
    return grad_x, grad_weight


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
