"""Lipschitz layers whose weights are projected once for many calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lipvae._holds import Holds
from lipvae.nn.layers import LipschitzLayer


def _set_frozen(layer: nn.Module, weights: list[Any]) -> None:
    assert isinstance(layer, LipschitzLayer)
    layer._frozen = weights[-1] if weights else None


# Where threads hold a layer to several weights, the newest: one was made after a change.
_HOLDS = Holds(_set_frozen)


class FrozenLayers:
    """The weights of all Lipschitz layers in a module, projected as they are now.

    Args:
        module: whose layers, at any depth, are projected.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, LipschitzLayer)]
        with torch.inference_mode(False), torch.no_grad():
            self._weights = {layer: layer._freeze() for layer in layers}

    def of(self, layer: LipschitzLayer) -> Any:
        """What was made of a layer of the module."""
        return self._weights[layer]

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """The layers multiply by these weights inside the block; see :func:`frozen`."""
        return _HOLDS.holding(self._weights.items)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Computes the projected weights of all Lipschitz layers once for the whole block.

    Outputs are the same numbers, bit for bit. The parameters must not change inside the block.
    Where autograd asks for a gradient with respect to a layer's weight (of a linear layer: with
    respect to anything), that layer projects as usual.

    Args:
        module: the module whose layers, at any depth, are frozen.

    Example:
        >>> import torch
        >>> from lipvae.nn import LipschitzLinear
        >>> layer = LipschitzLinear(4, 6)
        >>> with frozen(layer), torch.no_grad():
        ...     outputs = [layer(torch.rand(1, 4)) for _ in range(3)]
    """
    with FrozenLayers(module).in_use():
        yield module
