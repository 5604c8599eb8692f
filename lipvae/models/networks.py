"""Encoders' trunks and decoders, fully connected and convolutional."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from lipvae._validate import check_count, describe
from lipvae.nn import LipschitzConv2d, LipschitzLinear

ARCHITECTURES = ("conv", "fc")

# fc: widths of the layers. conv: channels of the strided convolutions, then the width of the
# linear layer that follows.
DEFAULT_HIDDEN: dict[str, tuple[int, ...]] = {"conv": (32, 64, 256), "fc": (512, 512)}

# Kernel 4, stride 2, padding 1 halves an even size exactly and reads every pixel equally often.
KERNEL, STRIDE, PADDING = 4, 2, 1
MINIMUM_SIDE = 8

Shape = tuple[int, int, int]


def check_input_shape(value: Sequence[int]) -> Shape:
    """Requires (channels, height, width)."""
    if not isinstance(value, tuple | list) or len(value) != 3:
        raise ValueError(f"input_shape must be (channels, height, width), got {describe(value)}")
    channels, height, width = (check_count("input_shape", side) for side in value)
    return channels, height, width


def check_hidden(architecture: str, hidden: Sequence[int] | None, shape: Shape) -> tuple[int, ...]:
    """Requires an architecture, and widths that fit it and the input's shape."""
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}"
        )
    if hidden is None:
        hidden = DEFAULT_HIDDEN[architecture]
    if not isinstance(hidden, tuple | list) or not hidden:
        raise ValueError(f"hidden must be a non-empty sequence of ints, got {describe(hidden)}")
    widths = tuple(check_count("hidden", width) for width in hidden)
    if architecture == "conv":
        if len(widths) < 2:
            raise ValueError(
                "hidden must hold the channels of at least one convolution and the width of the "
                f"linear layer for architecture 'conv', got {hidden!r}"
            )
        side = min(shape[1:])
        if side < MINIMUM_SIDE:
            raise ValueError(
                f"input_shape must be at least {MINIMUM_SIDE} pixels high and wide for "
                f"architecture 'conv', got {shape}; architecture 'fc' takes any"
            )
        if side >> (len(widths) - 1) < 1:
            raise ValueError(
                f"hidden has {len(widths) - 1} convolutions, each of which halves the image; "
                f"input_shape {shape} is too small for them"
            )
    return widths


def _sizes(shape: Shape, convolutions: int) -> list[tuple[int, int]]:
    """Heights and widths before the first convolution and after each."""
    sizes = [shape[1:]]
    for _ in range(convolutions):
        height, width = sizes[-1]
        sizes.append((height // 2, width // 2))
    return sizes


def _trunk(
    architecture: str,
    shape: Shape,
    hidden: tuple[int, ...],
    conv: Callable[[int, int], list[nn.Module]],
    linear: Callable[[int, int], list[nn.Module]],
) -> nn.Sequential:
    if architecture == "fc":
        layers: list[nn.Module] = [nn.Flatten()]
        widths = [math.prod(shape), *hidden]
    else:
        layers = []
        for c_in, c_out in pairwise([shape[0], *hidden[:-1]]):
            layers += conv(c_in, c_out)
        layers.append(nn.Flatten())
        height, width = _sizes(shape, len(hidden) - 1)[-1]
        widths = [hidden[-2] * height * width, hidden[-1]]
    for n_in, n_out in pairwise(widths):
        layers += linear(n_in, n_out)
    return nn.Sequential(*layers)


def relu_trunk(architecture: str, shape: Shape, hidden: tuple[int, ...]) -> nn.Sequential:
    """An ordinary encoder without its heads: [B, C, H, W] -> [B, hidden[-1]]."""
    return _trunk(
        architecture,
        shape,
        hidden,
        lambda i, o: [nn.Conv2d(i, o, KERNEL, STRIDE, PADDING), nn.ReLU()],
        lambda i, o: [nn.Linear(i, o), nn.ReLU()],
    )


def lipschitz_trunk(
    architecture: str, shape: Shape, hidden: tuple[int, ...], group_size: int
) -> nn.Sequential:
    """A Lipschitz encoder without its heads: [B, C, H, W] -> [B, hidden[-1]]."""
    return _trunk(
        architecture,
        shape,
        hidden,
        lambda i, o: [LipschitzConv2d(i, o, KERNEL, STRIDE, PADDING, group_size=group_size)],
        lambda i, o: [LipschitzLinear(i, o, group_size=group_size)],
    )


def decoder(
    architecture: str,
    shape: Shape,
    hidden: tuple[int, ...],
    latent_dim: int,
    parameters: int,
    linear: Callable[..., nn.Module] = nn.Linear,
    transposed: Callable[..., nn.Module] = nn.ConvTranspose2d,
) -> nn.Sequential:
    """The mirror of an encoder, with ReLU.

    Args:
        architecture: "fc" or "conv".
        shape: (C, H, W) of the images.
        hidden: the encoder's widths; the decoder takes them in reverse.
        latent_dim: m.
        parameters: P, parameters of the likelihood per dimension.
        linear: makes a layer of the arguments that `nn.Linear` takes.
        transposed: likewise for `nn.ConvTranspose2d`.

    Returns:
        fc: [N, m] -> [N, P * C * H * W], ending in a Linear. conv: [N, m] -> [N, P * C, H, W],
        ending in a transposed convolution. Flattened, both have the values of the first
        parameter, (c, h, w) in row-major order, before those of the second.
    """
    layers: list[nn.Module] = []
    if architecture == "fc":
        for n_in, n_out in pairwise([latent_dim, *reversed(hidden)]):
            layers += [linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers, linear(hidden[0], parameters * math.prod(shape)))
    sizes = _sizes(shape, len(hidden) - 1)[::-1]
    channels = [*reversed(hidden[:-1]), parameters * shape[0]]
    size = (channels[0], *sizes[0])
    layers = [linear(latent_dim, hidden[-1]), nn.ReLU()]
    layers += [linear(hidden[-1], math.prod(size)), nn.ReLU(), nn.Unflatten(1, size)]
    for (c_in, c_out), (small, large) in zip(pairwise(channels), pairwise(sizes), strict=True):
        odd = (large[0] - 2 * small[0], large[1] - 2 * small[1])
        layers += [transposed(c_in, c_out, KERNEL, STRIDE, PADDING, odd), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lipschitz_decoder(
    architecture: str,
    shape: Shape,
    hidden: tuple[int, ...],
    latent_dim: int,
    parameters: int,
    group_size: int,
) -> nn.Sequential:
    """The mirror of an encoder, of Lipschitz layers; arguments and shapes as of :func:`decoder`.

    A convolution makes the four pixels of each place and `PixelShuffle` puts them side by side,
    so every row of a weight is one output's, and the bound of equation (1) holds.

    Raises:
        ValueError: for "conv" with a height or width that the convolutions do not halve evenly.
    """
    layers: list[nn.Module] = []
    if architecture == "fc":
        for n_in, n_out in pairwise([latent_dim, *reversed(hidden)]):
            layers.append(LipschitzLinear(n_in, n_out, group_size=group_size))
        return nn.Sequential(*layers, LipschitzLinear(hidden[0], parameters * math.prod(shape)))
    convolutions = len(hidden) - 1
    if any(side % 2**convolutions for side in shape[1:]):
        raise ValueError(
            f"decoder_lipschitz needs an input_shape whose height and width are multiples of "
            f"{2**convolutions} for architecture 'conv', got {shape}; architecture 'fc' takes any"
        )
    size = (hidden[-2], *_sizes(shape, convolutions)[-1])
    layers = [
        LipschitzLinear(latent_dim, hidden[-1], group_size=group_size),
        LipschitzLinear(hidden[-1], math.prod(size), group_size=group_size),
        nn.Unflatten(1, size),
    ]
    for c_in, c_out in pairwise(reversed(hidden[:-1])):
        layers += [LipschitzConv2d(c_in, 4 * c_out, 3, 1, 1, group_size=group_size)]
        layers += [nn.PixelShuffle(2)]
    layers += [LipschitzConv2d(hidden[0], 4 * parameters * shape[0], 3, 1, 1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers)
