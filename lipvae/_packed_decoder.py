"""A fully connected decoder whose rows do not reach each other."""

from __future__ import annotations

from torch import Tensor, nn

from lipvae._backend import choose
from lipvae.models import VAE
from lipvae.ops.importance_linear import PackedHead
from lipvae.ops.panels import PackedLinear


class PackedDecoder:
    """A decoder of linear layers with ReLU between them, as it is now, on the CPU.

    Each row of samples gets the same bits whatever rows are decoded with it, so images may share a
    product.

    Args:
        model: one for which :func:`can_pack` holds. Later changes of its weights do not show.
    """

    def __init__(self, model: VAE) -> None:
        *hidden, head = [layer for layer in model.decoder if type(layer) is nn.Linear]
        self._hidden = [PackedLinear(layer.weight, layer.bias) for layer in hidden]
        self._head = PackedHead(head.weight, head.bias, model.likelihood.name).keep()

    def log_likelihood(self, z: Tensor, target: Tensor) -> Tensor:
        """log p(x | z_k).

        Args:
            z: [K, B, m].
            target: [B, D].

        Returns:
            [K, B].
        """
        rows = z.flatten(0, 1)
        for layer in self._hidden:
            rows = layer(rows, relu=True)
        return self._head.log_likelihood(rows.unflatten(0, z.shape[:2]), target)


def can_pack(model: VAE) -> bool:
    """Whether the decoder is what :class:`PackedDecoder` computes, and the C++ backend computes it.

    Layers of other types, hooks, and subclasses that decode in their own way are left to torch.
    """
    own = (model.decode, VAE.decode), (model.decode_hidden, VAE.decode_hidden)
    if any(getattr(method, "__func__", None) is not usual for method, usual in own):
        return False
    layers = list(model.decoder)
    if choose("importance", next(model.parameters())) != "cpp" or not layers:
        return False
    kinds = [nn.Linear if i % 2 == 0 else nn.ReLU for i in range(len(layers))]
    return (
        len(layers) % 2 == 1
        and all(type(layer) is kind for layer, kind in zip(layers, kinds, strict=True))
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    )
