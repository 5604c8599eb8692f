"""Transposed convolutions whose images do not reach each other, bit for bit."""

from __future__ import annotations

from torch import Tensor

from lipvae._backend import cpp_module
from lipvae._workers import kernel_threads
from lipvae.ops._common import dtype_code
from lipvae.ops.panels import pack

# Bytes that the kernel keeps for the taps of one pixel, `taps_bytes` in csrc/kernels.hpp.
TAPS_BYTES = 128 * 1024


class PackedConvTranspose2d:
    """A transposed convolution as it is now: later changes of its weight do not reach it.

    The C++ kernel multiplies every pixel with all taps, by the product of
    :class:`lipvae.ops.panels.PackedLinear`, and adds the taps up while they are in the cache.

    Args:
        weight: [in, out, kernel height, kernel width], float32 or float64 on the CPU, for which
            :func:`fits` holds.
        bias: [out] of the same dtype, or None.
        stride: of both directions.
        padding: likewise, as `torch.nn.ConvTranspose2d` counts it.
        output_padding: likewise.

    Raises:
        ValueError: for a bias of another shape or dtype.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        output_padding: tuple[int, int] = (0, 0),
    ) -> None:
        weight = weight.detach()
        if bias is not None and (bias.dtype != weight.dtype or bias.shape != weight.shape[1:2]):
            raise ValueError(
                f"bias must be {weight.dtype} [{weight.shape[1]}], "
                f"got {bias.dtype} {tuple(bias.shape)}"
            )
        self._in_channels, self._out_channels = weight.shape[:2]
        self._kernel: tuple[int, int] = (weight.shape[2], weight.shape[3])
        taps = weight.permute(2, 3, 1, 0).reshape(-1, self._in_channels)
        self._panels = pack(taps.contiguous(), None)
        self._bias = None if bias is None else bias.detach().contiguous()
        self._stride, self._padding, self._output_padding = stride, padding, output_padding

    def __call__(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """The convolution, or its positive part.

        Args:
            x: [N, H, W, in], channels last, of the weight's dtype.
            relu: whether to set what is negative to zero.

        Returns:
            [N, H', W', out] with H' = (H - 1) stride - 2 padding + kernel + output_padding.
        """
        panels = self._panels
        if x.dtype != panels.dtype or x.dim() != 4 or x.shape[3] != self._in_channels:
            raise ValueError(
                f"x must be {panels.dtype} [N, H, W, {self._in_channels}], "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        x = x.contiguous()
        n, *size = x.shape[:3]
        to = [
            (side - 1) * stride - 2 * padding + kernel + more
            for side, stride, padding, kernel, more in zip(
                size, self._stride, self._padding, self._kernel, self._output_padding, strict=True
            )
        ]
        out = x.new_empty(n, *to, self._out_channels)
        cpp_module().conv_transpose_forward(
            x.data_ptr(),
            panels.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
            out.data_ptr(),
            n,
            tuple(x.shape[1:]),
            tuple(out.shape[1:]),
            self._kernel,
            self._stride,
            self._padding,
            panels.shape[-1],
            relu,
            dtype_code(x),
            kernel_threads(),
        )
        return out


def fits(weight: Tensor) -> bool:
    """Whether the taps of one pixel fit into what the kernel keeps.

    Args:
        weight: [in, out, kernel height, kernel width].
    """
    width = cpp_module().panel_width(dtype_code(weight))
    taps = -(-weight[0].numel() // width) * width
    return taps * weight.itemsize <= TAPS_BYTES
