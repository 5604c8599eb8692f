"""A fully connected decoder whose rows do not reach each other."""

from __future__ import annotations

from torch import Tensor, nn

from lipvae import _packed_layers as layers
from lipvae._backend import choose
from lipvae.models import VAE
from lipvae.ops.importance_linear import PackedHead


class PackedDecoder:
    """A decoder of linear layers with ReLU between them, as it is now, on the CPU.

    Each row of samples gets the same bits whatever rows are decoded with it, so images may share a
    product.

    Args:
        model: one for which :func:`can_pack` holds. Later changes of its weights do not show.
    """

    def __init__(self, model: VAE) -> None:
        *hidden, head = model.decoder
        self._hidden = layers.PackedLayers(hidden)
        self._head = PackedHead(*layers.in_use(head), model.likelihood.name).keep()

    def log_likelihood(self, z: Tensor, target: Tensor) -> Tensor:
        """log p(x | z_k).

        Args:
            z: [K, B, m].
            target: [B, D].

        Returns:
            [K, B].
        """
        rows = self._hidden(z.flatten(0, 1))
        return self._head.log_likelihood(rows.unflatten(0, z.shape[:2]), target)


def can_pack(model: VAE) -> bool:
    """Whether the decoder is what :class:`PackedDecoder` computes, and the C++ backend computes it.

    Layers of other types, hooks, and subclasses that decode in their own way are left to torch.
    """
    own = (model.decode, VAE.decode), (model.decode_hidden, VAE.decode_hidden)
    if any(getattr(method, "__func__", None) is not usual for method, usual in own):
        return False
    found = list(model.decoder)
    return (
        choose("importance", next(model.parameters())) == "cpp"
        and bool(found)
        and not layers.hooked(model.decoder)
        and type(found[-1]) is not nn.ReLU
        and getattr(found[-1], "group_size", None) is None
        and layers.can_pack(found)
    )
