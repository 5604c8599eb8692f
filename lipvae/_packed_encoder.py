"""A fully connected encoder whose rows do not reach each other."""

from __future__ import annotations

from torch import Tensor, nn

from lipvae import _packed_layers as layers
from lipvae._backend import choose
from lipvae._walk import first_parameter, hooked
from lipvae.models import VAE
from lipvae.models.posterior import NormalPosterior
from lipvae.nn.freezing import FrozenLayers


class PackedEncoder:
    """An encoder of linear or Lipschitz layers with two linear heads, as it is now, on the CPU.

    Each image gets the same bits whatever images are encoded with it.

    Args:
        model: one for which :func:`can_pack` holds. Later changes of its weights do not show.
        frozen: its Lipschitz layers.
    """

    def __init__(self, model: VAE, frozen: FrozenLayers) -> None:
        _, *trunk = model.trunk
        self._trunk = layers.PackedLayers(trunk, frozen)
        self._loc = layers.pack(model.loc, frozen)
        self._log_variance = layers.pack(model.log_variance, frozen)

    def posterior(self, x: Tensor) -> NormalPosterior:
        """q(z | x) of images, flattened: [B, D]."""
        features = self._trunk(x)
        return NormalPosterior(self._loc(features), self._log_variance(features))


def can_pack(model: VAE) -> bool:
    """Whether the encoder is what :class:`PackedEncoder` computes, and the C++ backend computes it.

    Layers of other types, hooks, and subclasses that encode in their own way are left to torch.
    """
    if getattr(model._encode, "__func__", None) is not VAE._encode:
        return False
    found = list(model.trunk)
    heads = [model.loc, model.log_variance]
    return (
        choose("importance", first_parameter(model)) == "cpp"
        and bool(found)
        and type(found[0]) is nn.Flatten
        and not hooked(model.trunk)
        and layers.can_pack([*found[1:], *heads])
        and not any(type(head) is nn.ReLU for head in heads)
        and all(getattr(head, "group_size", None) is None for head in heads)
    )
