"""Lipschitz layers whose weights are projected once for many calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lipvae.nn.layers import LipschitzLayer


class FrozenLayers:
    """The weights of all Lipschitz layers in a module, projected as they are now.

    Args:
        module: whose layers, at any depth, are projected.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, LipschitzLayer)]
        with torch.inference_mode(False), torch.no_grad():
            self._weights = [
                (layer, layer._freeze() if layer._frozen is None else layer._frozen)
                for layer in layers
            ]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The layers multiply by these weights inside the block; see :func:`frozen`."""
        fixed = [(layer, weight) for layer, weight in self._weights if layer._frozen is None]
        try:
            for layer, weight in fixed:
                layer._frozen = weight
            yield
        finally:
            for layer, _ in fixed:
                layer._frozen = None


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
