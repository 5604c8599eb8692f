"""The decoder's last layer fused with the log-likelihood: the logits never reach memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from lipvae._backend import choose, kernel_module
from lipvae.ops._common import compiling, needs_grad
from lipvae.ops.importance import cpp_forward as importance_cpp
from lipvae.ops.importance import forward as importance_forward
from lipvae.ops.importance import importance, result_dtype

# Samples of one CPU tile. A result depends on its image and on K alone, because no tile holds rows
# of two images and every tile of an image has the same shape in any batch.
TILE_SAMPLES = 128

# Most dimensions of one CPU tile, where a dimension has one parameter. The logits of a tile (0.4 MB
# at 784 pixels) stay in the second-level cache until they are reduced, and the part of the weight
# that makes them passes through it once for all images.
TILE_DIMS = 800


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str
) -> Tensor:
    """[K, B, H], [P * D, H], [P * D], [B, D] -> [K, B]."""
    if choose("importance", hidden) == "triton":
        return kernel_module("importance_linear").importance_linear_forward(
            hidden, weight, bias, target, family
        )
    k, b, _ = hidden.shape
    d = target.shape[1]
    if weight.shape[0] != d or d <= TILE_DIMS:
        found = _block(hidden, weight, bias, target, family)
    else:
        found = hidden.new_zeros(b, k, dtype=torch.float64)
        blocks = -(-d // TILE_DIMS)
        width = -(-d // (16 * blocks)) * 16  # of like blocks, in whole vectors
        for start in range(0, d, width):
            part = slice(start, start + width)
            part_bias = None if bias is None else bias[part]
            found += _block(hidden, weight[part], part_bias, target[:, part], family)
    return found.to(result_dtype(hidden)).t().contiguous()


def _block(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str
) -> Tensor:
    """[K, B, H], [P * D, H], [P * D], [B, D] -> [B, K], image by image."""
    k, b, _ = hidden.shape
    out = hidden.new_empty(b, k, 1, dtype=result_dtype(hidden))
    cpp = choose("importance", hidden) == "cpp"
    images, weight_t = target.contiguous().split(1), weight.t()
    # One buffer for all tiles: a fresh one would have to find its way into the cache each time.
    buffer = hidden.new_empty(min(k, TILE_SAMPLES), len(weight))
    # Not strict: an empty batch splits into one empty part.
    for samples, image, values in zip(hidden.unbind(1), images, out, strict=False):
        tiles = zip(samples.split(TILE_SAMPLES), values.split(TILE_SAMPLES), strict=True)
        for tile, value in tiles:
            parameters = buffer[: tile.shape[0]]
            if bias is None:
                torch.mm(tile, weight_t, out=parameters)
            else:
                torch.addmm(bias, tile, weight_t, out=parameters)
            if cpp:
                importance_cpp(parameters, image, value, family)
            else:
                value.copy_(importance_forward(parameters.unsqueeze(1), image, family))
    return out.squeeze(2)


@torch.library.custom_op("lipvae::importance_linear", mutates_args=())
def _op(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str) -> Tensor:
    return forward(hidden, weight, bias, target, family)


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
    if needs_grad(hidden, weight, bias, target):
        return importance(linear(hidden, weight, bias), target, family)
    if compiling():
        return torch.ops.lipvae.importance_linear(hidden, weight, bias, target, family)
    return forward(hidden, weight, bias, target, family)
