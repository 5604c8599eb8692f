"""The decoder's last layer fused with the log-likelihood: the logits never reach memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from lipvae import reference
from lipvae._backend import choose, cpp_module, kernel_module
from lipvae._workers import kernel_threads
from lipvae.ops._common import (
    compiling,
    dtype_code,
    left_to_reference,
    needs_grad,
    without_autocast,
)
from lipvae.ops.importance import FAMILY_CODES, importance, result_dtype
from lipvae.ops.importance import forward as importance_forward
from lipvae.ops.panels import pack

# Samples of an image that the reference decodes at once.
TILE_SAMPLES = 128

# Parameters that torch's product makes at once on a device: what its second-level cache holds until
# they are reduced. A product of few rows would wait for the weight, so there are at least as many
# rows as these, as far as they make no more than so many numbers.
CACHED_NUMBERS, LEAST_ROWS, MOST_NUMBERS = 1 << 23, 256, 1 << 26

# Bytes of a row of parameters that the C++ kernel makes at once, where one panel a parameter is not
# more. A tile of such rows stays in the second-level cache until it is reduced, and the part of the
# weight that makes them in the third.
ROW_BYTES = 4096

# Larger weights are packed again for every call: a copy would take as much memory as the model.
KEPT_BYTES = 64 << 20


class PackedHead:
    """The decoder's last layer as it is now, packed for the C++ kernel.

    Args:
        weight: [P * D, H], float32 or float64 on the CPU.
        bias: [P * D] of the same dtype, or None.
        family: a key of `reference.FAMILIES`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, family: str) -> None:
        self._weight = weight.detach().contiguous()
        self._bias = None if bias is None else bias.detach().contiguous()
        self._family = family
        self._planes = reference.FAMILIES[family].parameters_per_dim
        self._dim = len(weight) // self._planes
        self._parts = self._split()
        self._kept: list[Tensor] | None = None

    def keep(self) -> PackedHead:
        """Keeps the packed weight for later calls if it is not too large, and returns itself."""
        if self._weight.nbytes <= KEPT_BYTES:
            self._kept = [self._pack(dims) for dims in self._parts]
        return self

    def log_likelihood(self, hidden: Tensor, target: Tensor) -> Tensor:
        """log p(x | z_k).

        Args:
            hidden: [K, B, H] of the weight's dtype. Where the samples of an image follow one
                another in memory, what is zero in several of them takes less time.
            target: [B, D] of the same dtype.

        Returns:
            [K, B]. An entry depends on its own row of `hidden` and `target` only.
        """
        fits = hidden.dtype == self._weight.dtype and hidden.shape[2] == self._weight.shape[1]
        if not fits or target.shape != (hidden.shape[1], self._dim):
            raise ValueError(
                f"hidden {hidden.dtype} {tuple(hidden.shape)} and target {tuple(target.shape)} do "
                f"not fit weight {self._weight.dtype} {tuple(self._weight.shape)}"
            )
        k, b, h = hidden.shape
        code, by_image = dtype_code(hidden), hidden.transpose(0, 1)
        images_first = by_image.is_contiguous()
        hidden = by_image if images_first else hidden.contiguous()
        total = hidden.new_zeros(hidden.shape[:2], dtype=torch.float64)
        panels: Tensor | None = None
        for i, dims in enumerate(self._parts):
            panels = self._kept[i] if self._kept else self._pack(dims, panels)
            part = target[:, dims].contiguous()
            cpp_module().importance_linear_forward(
                hidden.data_ptr(),
                panels.data_ptr(),
                part.data_ptr(),
                total.data_ptr(),
                k,
                b,
                part.shape[1],
                h,
                panels.shape[-1],
                images_first,
                FAMILY_CODES[self._family],
                code,
                kernel_threads(),
            )
        total = total.to(hidden.dtype)
        return total.t() if images_first else total

    def _split(self) -> list[slice]:
        """Blocks of dimensions, of like size and in whole panels."""
        width = cpp_module().panel_width(dtype_code(self._weight))
        most = ROW_BYTES // (self._weight.itemsize * self._planes * width) or 1
        panels = -(-self._dim // width)
        count = -(-panels // most)
        dims = -(-panels // count) * width if count else 1
        return [slice(start, min(start + dims, self._dim)) for start in range(0, self._dim, dims)]

    def _pack(self, dims: slice, buffer: Tensor | None = None) -> Tensor:
        """The panels of a block, in the buffer of the last one if they fill it."""
        if dims.stop - dims.start < self._parts[0].stop:
            buffer = None
        return pack(self._weight, self._bias, self._planes, dims, buffer)


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str
) -> Tensor:
    """[K, B, H], [P * D, H], [P * D], [B, D] -> [K, B]."""
    backend = choose("importance_linear", hidden)
    if backend == "cpp":
        return PackedHead(weight, bias, family).log_likelihood(hidden, target)
    if backend == "triton":
        return kernel_module("importance_linear").importance_linear_forward(
            hidden, weight, bias, target, family
        )
    if hidden.is_cpu:
        return _by_image(hidden, weight, bias, target, family)
    return _by_samples(hidden, weight, bias, target, family)


def _by_samples(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str
) -> Tensor:
    """:func:`forward` by torch's product on a device, some samples of all images at once."""
    units = max(1, len(weight))
    rows = max(CACHED_NUMBERS // units, min(LEAST_ROWS, MOST_NUMBERS // units))
    samples = max(1, rows // max(1, hidden.shape[1]))
    parts = max(1, -(-len(hidden) // samples))
    with without_autocast(hidden.device):
        found = [
            importance_forward(linear(part, weight, bias), target, family)
            for part in hidden.tensor_split(parts)
        ]
    return torch.cat(found) if len(found) != 1 else found[0]


def _by_image(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str
) -> Tensor:
    """:func:`forward` by torch's product, image by image in tiles of a fixed shape."""
    k, b, _ = hidden.shape
    out = hidden.new_empty(b, k, dtype=result_dtype(hidden))
    for i in range(b):
        image = target[i : i + 1]
        for start in range(0, k, TILE_SAMPLES):
            tile = hidden[start : start + TILE_SAMPLES, i : i + 1]
            found = importance_forward(linear(tile, weight, bias), image, family)
            out[i, start : start + TILE_SAMPLES] = found[:, 0]
    return out.t().contiguous()


@torch.library.custom_op("lipvae::importance_linear", mutates_args=())
def _op(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str) -> Tensor:
    return forward(hidden, weight, bias, target, family).contiguous()


@_op.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str) -> Tensor:
    return hidden.new_empty(hidden.shape[:2], dtype=result_dtype(hidden))


def importance_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str
) -> Tensor:
    """log p(x | z_k) from the decoder's last hidden layer.

    Equal to ``importance(linear(hidden, weight, bias), target, family)`` up to rounding. Where
    autograd needs a gradient, that composition is what runs: the fusion is for scoring.

    Args:
        hidden: [K, B, H].
        weight: [P * D, H].
        bias: [P * D] or None.
        target: [B, D] in [0, 1].
        family: a key of `reference.FAMILIES`.

    Returns:
        [K, B].
    """
    tensors = (hidden, weight, bias, target)
    if left_to_reference("importance_linear", *tensors) or needs_grad(*tensors):
        return importance(linear(hidden, weight, bias), target, family)
    if compiling():
        return torch.ops.lipvae.importance_linear(hidden, weight, bias, target, family)
    return forward(hidden, weight, bias, target, family)
