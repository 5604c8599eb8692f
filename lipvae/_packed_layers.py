"""Linear layers with their activations, as the C++ product takes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lipvae import ops
from lipvae.nn import LipschitzLinear
from lipvae.ops.panels import PackedLinear


class PackedLayers:
    """Layers that follow one another, with their weights as they are now.

    Each row gets the same bits whatever rows go through with it. Later changes of a weight do not
    show.

    Args:
        layers: for which :func:`can_pack` holds.
        order: of the last layer's outputs, which must not be sorted; None for their own.
    """

    def __init__(self, layers: Iterable[nn.Module], order: Tensor | None = None) -> None:
        layers = list(layers)
        self._steps = [
            (pack(layer), type(after) is nn.ReLU, getattr(layer, "group_size", None))
            for layer, after in itertools.pairwise([*layers, None])
            if layer is not None and type(layer) is not nn.ReLU
        ]
        if order is not None:
            last = next(layer for layer in reversed(layers) if type(layer) is not nn.ReLU)
            weight, bias = in_use(last)
            product = PackedLinear(weight[order], None if bias is None else bias[order])
            self._steps[-1] = (product, *self._steps[-1][1:])

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, in] -> [N, out], contiguous."""
        for product, relu, group_size in self._steps:
            rows = product(rows, relu=relu)
            if group_size is not None:
                rows = ops.group_sort(rows, group_size, -1)
        return rows


def pack(*layers: nn.Module) -> PackedLinear:
    """One product for layers that take the same input: their outputs one after the other."""
    weights, biases = zip(*map(in_use, layers), strict=True)
    if len(layers) == 1:
        return PackedLinear(weights[0], biases[0])
    given = [
        weight.new_zeros(len(weight)) if bias is None else bias
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return PackedLinear(torch.cat(weights), torch.cat(given))


def in_use(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight that a layer multiplies by, a Lipschitz layer's projected, and its bias."""
    if isinstance(layer, LipschitzLinear):
        return layer.weight_in_use(), layer.bias
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
        if hooked(layer):
            return False
        before = kind
    return True


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward()."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
