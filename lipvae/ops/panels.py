"""Linear layers whose output rows depend on nothing but their own input row, bit for bit.

A BLAS rounds by the shape of the whole product. The C++ product of :class:`PackedLinear` gives
every row the same operations in the same order, whatever rows stand beside it and however many
threads there are. It reads the weight in panels, which are packed beforehand.
"""

from __future__ import annotations

import math

from torch import Tensor

from lipvae._backend import cpp_module
from lipvae._validate import describe
from lipvae._workers import kernel_threads
from lipvae.ops._common import dtype_code


def check_bias(bias: Tensor, weight: Tensor) -> None:
    """Requires [out] of the type of the weight [out, in], whose kernels read it by its address."""
    if bias.dtype != weight.dtype or bias.shape != weight.shape[:1] or bias.device != weight.device:
        raise ValueError(
            f"bias must have shape [{weight.shape[0]}] and the weight's {weight.dtype} on "
            f"{weight.device}, got {describe(bias)}"
        )


def empty_panels(weight: Tensor, planes: int = 1, dims: slice = slice(None)) -> Tensor:
    """Room for what :func:`pack` makes of a weight."""
    total, inner = weight.shape[0] // planes, weight.shape[1]
    width = cpp_module().panel_width(dtype_code(weight))
    count = -(-len(range(total)[dims]) // width)
    return weight.new_empty(planes, count, 1 + inner, width)


def pack(
    weight: Tensor,
    bias: Tensor | None,
    planes: int = 1,
    dims: slice = slice(None),
    out: Tensor | None = None,
) -> Tensor:
    """Rearranges a weight for the C++ product.

    Args:
        weight: [P * D, H], float32 or float64 on the CPU, contiguous.
        bias: [P * D] or None, likewise.
        planes: P, each of which starts a panel.
        dims: which of the D.
        out: a tensor of the result's shape to write into.

    Returns:
        [P, ceil(d / width), 1 + H, width] for the d dimensions of `dims`.
    """
    if bias is not None:
        check_bias(bias, weight)
    total, inner = weight.shape[0] // planes, weight.shape[1]
    start, stop, _ = dims.indices(total)
    module, dtype = cpp_module(), dtype_code(weight)
    if out is None:
        out = empty_panels(weight, planes, dims)
    module.linear_pack(
        weight[start:].data_ptr(),
        0 if bias is None else bias[start:].data_ptr(),
        out.data_ptr(),
        planes,
        stop - start,
        total,
        inner,
        module.panel_width(dtype),
        dtype,
        kernel_threads(),
    )
    return out


class PackedLinear:
    """A linear layer as it is now: later changes of its weight do not reach it.

    Args:
        weight: [D, H], float32 or float64 on the CPU.
        bias: [D] of the same dtype, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().contiguous()
        panels = pack(weight, None if bias is None else bias.detach().contiguous())
        self._set(panels, weight.shape[0], 0)

    def _set(self, panels: Tensor, out_features: int, group_size: int) -> None:
        self._panels, self._group_size = panels, group_size
        self._out_features, self._in_features = out_features, panels.shape[-2] - 1

    @classmethod
    def of_panels(cls, panels: Tensor, out_features: int, group_size: int = 0) -> PackedLinear:
        """A layer whose weight is packed already.

        Args:
            panels: [1, ceil(D / width), 1 + H, width].
            out_features: D.
            group_size: 2, 4 or 8 to sort the output in groups; 0 not to.
        """
        layer = cls.__new__(cls)
        layer._set(panels, out_features, group_size)
        return layer

    def __call__(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """x W^T + b, or its positive part.

        Args:
            x: [N, H] or [..., N, H] of the weight's dtype. What is zero in several neighbours of
                the N takes less time; leading dimensions keep apart what is not alike.
            relu: whether to set what is negative to zero, before the sort.

        Returns:
            [..., N, D].
        """
        panels = self._panels
        if x.dtype != panels.dtype or x.dim() < 2 or x.shape[-1] != self._in_features:
            raise ValueError(
                f"x must be {panels.dtype} [..., N, {self._in_features}], "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        x = x.contiguous()
        *shape, _ = x.shape
        together = max(1, shape[-1]) if len(shape) > 1 else 1
        out = x.new_empty(*shape, self._out_features)
        cpp_module().linear_forward(
            x.data_ptr(),
            panels.data_ptr(),
            out.data_ptr(),
            math.prod(shape),
            self._out_features,
            self._in_features,
            panels.shape[-1],
            together,
            relu,
            self._group_size,
            dtype_code(x),
            kernel_threads(),
        )
        return out
