"""Decoders whose rows do not reach each other, on the CPU."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
from torch import Tensor, nn

from lipvae import _packed_layers as layers
from lipvae import ops
from lipvae._backend import choose
from lipvae._walk import first_parameter, hooked
from lipvae._workers import kernel_threads
from lipvae.models import VAE
from lipvae.nn.freezing import FrozenLayers
from lipvae.ops.conv_transpose import PackedConvTranspose2d, fits
from lipvae.ops.importance_linear import PackedHead


class _InParts:
    """A decoder that takes a few samples at a time, so that their activations stay in a cache.

    Attributes:
        SAMPLES: how many for each thread.
        POOLED: whether threads are better used on images of their own than in every kernel
            together: docs/performance.md.
    """

    SAMPLES: ClassVar[int]
    POOLED: ClassVar[bool]

    def log_likelihood(self, z: Tensor, target: Tensor) -> Tensor:
        """log p(x | z_k).

        Args:
            z: [K, B, m], best with the samples of an image one after the other in memory.
            target: [B, D].

        Returns:
            [K, B].
        """
        k, b = z.shape[:2]
        # Samples of an image follow one another: ReLU switches much of the same off in all.
        by_image = z.transpose(0, 1)
        most = self.SAMPLES * kernel_threads()
        images = max(1, most // k)
        if b <= images and k <= most:
            return self._of_part(by_image, target).t()
        found = z.new_empty(b, k)
        for i in range(0, b, images):
            few = slice(i, i + images)
            for start in range(0, k, most):
                samples = slice(start, start + most)
                found[few, samples] = self._of_part(by_image[few, samples], target[few])
        return found.t()

    def _of_part(self, z: Tensor, target: Tensor) -> Tensor:
        """[B, K, m], [B, D] -> [B, K] for so few samples."""
        raise NotImplementedError


class FullyConnectedDecoder(_InParts):
    """A decoder of linear layers, ordinary or Lipschitz, as it is now.

    Each row of samples gets the same bits whatever rows are decoded with it, so images may share a
    product.

    Args:
        model: one for which :func:`pack` makes this. Later changes of its weights do not show.
        frozen: its Lipschitz layers.
    """

    SAMPLES = 256
    POOLED = False

    def __init__(self, model: VAE, frozen: FrozenLayers) -> None:
        *hidden, head = model.decoder
        self._hidden = layers.PackedLayers(hidden, frozen)
        self._head = PackedHead(*layers.weight_and_bias(head), model.likelihood.name).keep()

    def _of_part(self, z: Tensor, target: Tensor) -> Tensor:
        return self._head.log_likelihood(self._hidden(z).transpose(0, 1), target).t()


class ConvolutionalDecoder(_InParts):
    """Linear layers and transposed convolutions after them; as :class:`FullyConnectedDecoder`."""

    SAMPLES = 128
    POOLED = True

    def __init__(self, model: VAE, frozen: FrozenLayers) -> None:
        found = list(model.decoder)
        at, (channels, *self._size) = _unflatten(found)
        # Activations lie channels last, so the last linear layer gives its outputs in that order.
        places = torch.arange(channels * self._size[0] * self._size[1], device="cpu")
        order = places.view(channels, *self._size).permute(1, 2, 0).flatten()
        self._linear = layers.PackedLayers(found[:at], frozen, order)
        self._convolutions = [
            (_pack_convolution(layer), type(after) is nn.ReLU)
            for layer, after in itertools.pairwise([*found[at + 1 :], None])
            if isinstance(layer, nn.ConvTranspose2d)
        ]
        self._family = model.likelihood.name

    def _of_part(self, z: Tensor, target: Tensor) -> Tensor:
        images = self._linear(z).flatten(0, 1).unflatten(1, (*self._size, -1))
        for convolution, relu in self._convolutions:
            images = convolution(images, relu=relu)
        parameters = images.permute(0, 3, 1, 2).reshape(*z.shape[:2], -1)
        return ops.importance(parameters.transpose(0, 1), target, self._family).t()


Packed = FullyConnectedDecoder | ConvolutionalDecoder


def pack(model: VAE) -> type[Packed] | None:
    """What computes the model's decoder as it is now, if the C++ backend does; None for torch.

    Layers of other types, hooks, and subclasses that decode in their own way are left to torch.
    """
    own = (model.decode, VAE.decode), (model.decode_hidden, VAE.decode_hidden)
    if any(getattr(method, "__func__", None) is not usual for method, usual in own):
        return None
    found = list(model.decoder)
    if (
        choose("importance", first_parameter(model)) != "cpp"
        or not found
        or any(map(hooked, [model.decoder, *found]))
        or type(found[-1]) is nn.ReLU
        or getattr(found[-1], "group_size", None) is not None
    ):
        return None
    if layers.can_pack(found):
        return FullyConnectedDecoder
    return ConvolutionalDecoder if _convolves(found) else None


def _unflatten(decoder: list[nn.Module]) -> tuple[int, tuple[int, ...]]:
    """The place of the first Unflatten, and the shape it gives; the end, and none, without one."""
    for i, layer in enumerate(decoder):
        if type(layer) is nn.Unflatten and layer.dim == 1:
            size = layer.unflattened_size
            return i, tuple(side for side in size if isinstance(side, int) and side > 0)
    return len(decoder), ()


def _convolves(decoder: list[nn.Module]) -> bool:
    """Whether :class:`ConvolutionalDecoder` computes the layers."""
    at, size = _unflatten(decoder)
    linear, images = decoder[:at], decoder[at + 1 :]
    kinds = [nn.ConvTranspose2d if i % 2 == 0 else nn.ReLU for i in range(len(images))]
    return (
        len(size) == 3
        and bool(images)
        and any(type(layer) is nn.Linear for layer in linear[-2:])
        and layers.can_pack(linear)
        and all(type(layer) is kind for layer, kind in zip(images, kinds, strict=True))
        and all(_packs(layer) for layer in images if isinstance(layer, nn.ConvTranspose2d))
    )


def _packs(layer: nn.ConvTranspose2d) -> bool:
    return layer.groups == 1 and layer.dilation == (1, 1) and fits(layer.weight)


def _pack_convolution(layer: nn.ConvTranspose2d) -> PackedConvTranspose2d:
    def pair(sizes: tuple[int | str, ...] | str) -> tuple[int, int]:
        return int(sizes[0]), int(sizes[1])

    return PackedConvTranspose2d(
        layer.weight,
        layer.bias,
        pair(layer.stride),
        pair(layer.padding),
        pair(layer.output_padding),
    )
