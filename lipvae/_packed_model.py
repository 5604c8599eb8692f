"""A model's weights as scoring takes them, kept for as long as they stay what they were."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lipvae import _packed_decoder, _packed_encoder
from lipvae._backend import requested
from lipvae._packed_encoder import PackedEncoder
from lipvae._walk import hooked, modules
from lipvae.models import VAE
from lipvae.nn.freezing import FrozenLayers
from lipvae.nn.layers import LipschitzLayer


class PackedModel:
    """Projected weights, and those of fully connected networks packed for the C++ product.

    Args:
        model: as it is now. :meth:`current` says whether it still is.
    """

    def __init__(self, model: VAE) -> None:
        _watch_optimizers()
        self._model = model
        self._state = _state(model)  # first: another thread may change a weight meanwhile
        self._frozen = FrozenLayers(model)
        self._encoder: PackedEncoder | None = None
        self._decoder: _packed_decoder.Packed | None = None
        # A weight that is kept cannot make room for another at the same address.
        self._weights = [parameter.detach() for parameter in model.parameters()]

    def current(self) -> bool:
        """Whether the weights and the layers are the same as when this was made.

        A weight is known by its storage and by its version, which every operation in place counts;
        what writes past torch, as `weight.data` or numpy can, is not seen.
        """
        found = self._state
        return found is not None and found == _state(self._model)

    def in_use(self) -> Any:
        """The model's Lipschitz layers multiply by the kept weights inside the block."""
        return self._frozen.in_use()

    def encoder(self) -> PackedEncoder | None:
        """None where torch has to encode."""
        if self._encoder is None and _packed_encoder.can_pack(self._model):
            self._encoder = PackedEncoder(self._model, self._frozen)
        return self._encoder

    def decoder(self) -> _packed_decoder.Packed | None:
        """None where torch has to decode."""
        if self._decoder is None and (kind := _packed_decoder.pack(self._model)) is not None:
            self._decoder = kind(self._model, self._frozen)
        return self._decoder


# What a subclass may do in its own way.
_METHODS = ("_encode", "decode", "decode_hidden")


def _state(model: VAE) -> list[object] | None:
    """What the packed weights and the backends follow from; None if that can't be seen."""
    found: list[object] = [requested(), model.likelihood.name]
    found += [getattr(getattr(model, name), "__func__", None) for name in _METHODS]
    for module in modules(model):
        found += [module, hooked(module)]
        if isinstance(module, LipschitzLayer):
            found += [module.lipschitz, module.group_size]
        for parameter in module._parameters.values():
            if parameter is not None:
                if parameter.is_inference():
                    return None
                found += _identity(parameter)
    return found


def _identity(weight: Tensor) -> tuple[object, ...]:
    return weight.data_ptr(), weight._version, weight.dtype, weight.shape, weight.stride()


@functools.cache
def _watch_optimizers() -> None:
    """From here on torch's fused optimizers count versions of what they change, as others do."""
    register_optimizer_step_post_hook(_count_fused_step)


def _count_fused_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            if parameter.grad is not None and not parameter.is_inference():
                increment_version(parameter)
