"""The decoder's last layer fused with the log-likelihood: the logits never reach memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from lipvae._backend import choose, kernel_module
from lipvae.ops._common import compiling, needs_grad
from lipvae.ops.importance import forward as importance_forward
from lipvae.ops.importance import importance, result_dtype

# Samples of one CPU tile. Its logits (0.4 MB at 784 pixels) stay in the second-level cache, and a
# result depends on its image and on K alone, because no tile holds rows of two images.
TILE_SAMPLES = 128

# Dimensions of one CPU tile, where a dimension has one parameter: the logits of a larger image
# (1.5 MB at 3,072 pixels) would leave the cache before they are reduced.
TILE_DIMS = 1024


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
    dims = TILE_DIMS if weight.shape[0] == d else max(d, 1)
    out = hidden.new_empty(k, b, dtype=result_dtype(hidden))
    for i in range(b):
        for start in range(0, k, TILE_SAMPLES):
            tile = slice(start, start + TILE_SAMPLES)
            out[tile, i : i + 1] = _tile(
                hidden[tile, i], weight, bias, target[i : i + 1], family, dims
            )
    return out


def _tile(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, family: str, dims: int
) -> Tensor:
    """[K, H], [P * D, H], [P * D], [1, D] -> [K, 1], at most `dims` dimensions at once."""
    if target.shape[1] <= dims:
        return importance_forward(linear(hidden, weight, bias).unsqueeze(1), target, family)
    total = hidden.new_zeros(len(hidden), 1, dtype=torch.float64)
    for start in range(0, target.shape[1], dims):
        part = slice(start, start + dims)
        parameters = linear(hidden, weight[part], None if bias is None else bias[part])
        total += importance_forward(parameters.unsqueeze(1), target[:, part], family)
    return total.to(result_dtype(hidden))


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
