"""Linear layers with their activations, as the C++ product takes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lipvae._walk import hooked
from lipvae.nn import LipschitzLinear
from lipvae.nn.freezing import FrozenLayers
from lipvae.ops.packed_lipschitz import PackedLipschitzLinear
from lipvae.ops.panels import PackedLinear

Packed = PackedLinear | PackedLipschitzLinear


class PackedLayers:
    """Layers that follow one another, with their weights as they are now.

    Each row gets the same bits whatever rows go through with it. Later changes of a weight do not
    show.

    Args:
        layers: for which :func:`can_pack` holds.
        frozen: of a module that has them.
        order: of the outputs, if the last layer but for ReLU is an ordinary one; None for its own.
    """

    def __init__(
        self, layers: Iterable[nn.Module], frozen: FrozenLayers, order: Tensor | None = None
    ) -> None:
        layers = list(layers)
        products = [layer for layer in layers if type(layer) is not nn.ReLU]
        followed = {a for a, b in itertools.pairwise(layers) if type(b) is nn.ReLU}
        self._steps: list[tuple[Packed, bool]] = [
            (pack(layer, frozen, order if layer is products[-1] else None), layer in followed)
            for layer in products
        ]

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., N, in] -> [..., N, out], contiguous; the N as :class:`PackedLinear` takes them."""
        for product, relu in self._steps:
            rows = product(rows, relu=relu) if isinstance(product, PackedLinear) else product(rows)
        return rows


def pack(layer: nn.Module, frozen: FrozenLayers, order: Tensor | None = None) -> Packed:
    """A layer as it is now: a linear one, or a Lipschitz one with its projection and its sort.

    `order` is that of an ordinary layer's outputs; None for its own.
    """
    if isinstance(layer, LipschitzLinear):
        packed = frozen.of(layer)
        assert isinstance(packed, PackedLipschitzLinear)
        return packed
    weight, bias = weight_and_bias(layer)
    if order is None:
        return PackedLinear(weight, bias)
    return PackedLinear(weight[order], None if bias is None else bias[order])


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """What a layer multiplies by, a Lipschitz one projected, and adds."""
    if isinstance(layer, LipschitzLinear):
        with torch.no_grad():
            return layer.projected_weight(), layer.bias
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias


def can_pack(layers: Iterable[nn.Module]) -> bool:
    """Whether the layers are linear ones, with or without ReLU, and Lipschitz ones.

    Layers of other types, and layers with hooks, are left to torch.
    """
    before: type[nn.Module] | None = None
    for layer in layers:
        kind = type(layer)
        if kind is nn.ReLU:
            if before is not nn.Linear:
                return False
        elif kind is not nn.Linear and kind is not LipschitzLinear:
            return False
        if hooked(layer) or not _has_own_bias(layer):
            return False
        before = kind
    return True


def _has_own_bias(layer: nn.Module) -> bool:
    """Whether a bias there is has one entry for each output; torch adds any that broadcasts."""
    if not isinstance(layer, nn.Linear | LipschitzLinear) or layer.bias is None:
        return True
    return layer.bias.shape == layer.weight.shape[:1]
