"""Layers whose weights are independent normal variables: Bayes by Backprop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, linear, softplus

from lipvae.noise import normal_like
from lipvae.ops._common import transforming

REPARAMETERIZATIONS = ("global", "local")


def inverse_softplus(value: float) -> float:
    """rho with softplus(rho) == value, for value > 0."""
    return value + math.log(-math.expm1(-value))


class BayesianLayer(nn.Module):
    r"""What the layers share: a parameter is :math:`\mathcal N(\mu, \mathrm{softplus}(\rho)^2)`.

    `weight` and `bias` hold the means, so that in evaluation mode the layer is the ordinary one at
    the posterior's mean. In training mode it is random:

    - "global": one draw of the weights for the whole batch, :meth:`redraw` makes the next.
    - "local": draws of the outputs, each from its own marginal distribution, which is normal with
      mean :math:`\mu \cdot x` and variance :math:`\sigma^2 \cdot x^2`. Gradients have less
      variance. Outputs of a linear layer are exactly as random as under a draw of the weights for
      each row; those of a convolution share weights, and here their correlation over places is
      left out. A pass that is computed again (activation checkpointing) draws again, which is
      the same only from torch's default generator.
    """

    reparameterization: str

    def _setup(self, reparameterization: str, initial_scale: float) -> None:
        if reparameterization not in REPARAMETERIZATIONS:
            raise ValueError(
                f"reparameterization must be one of {', '.join(REPARAMETERIZATIONS)}, got "
                f"{reparameterization!r}"
            )
        self.reparameterization = reparameterization
        rho = inverse_softplus(initial_scale)
        for name, mean in list(self.named_parameters(recurse=False)):
            scale = nn.Parameter(torch.full_like(mean.detach(), rho))
            self.register_parameter(f"{name}_rho", scale)
        self._generator: torch.Generator | None = None
        self._noise: dict[str, Tensor] = {}

    def distributions(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields name, mean and standard deviation of `weight` and of `bias`."""
        for name in ("weight", "bias"):
            mean = getattr(self, name)
            if mean is not None:
                yield name, mean, softplus(getattr(self, f"{name}_rho"))

    def kl(self, prior_scale: float) -> Tensor:
        """KL of the weights' posterior to independent N(0, prior_scale^2), a scalar in nats."""
        terms = []
        for _, mean, scale in self.distributions():
            ratio = (scale / prior_scale).square()
            excess = ratio - 1 - ratio.log()
            terms.append(0.5 * ((mean / prior_scale).square() + excess).sum().double())
        return torch.stack(terms).sum()

    def redraw(self, generator: torch.Generator | None) -> None:
        """Makes the noise of the next training pass from `generator`."""
        self._generator = generator
        if self.reparameterization == "global":
            self._noise = self._draws()

    def forget(self) -> None:
        """Drops the noise; the next training pass draws anew."""
        self._noise = {}

    def _draws(self) -> dict[str, Tensor]:
        return {name: self._draw(mean) for name, mean, _ in self.distributions()}

    def _draw(self, like: Tensor) -> Tensor:
        return normal_like(like, like.shape, self._generator)

    def _sampled(self) -> tuple[Tensor, Tensor | None]:
        """The drawn weight and bias, differentiable with respect to mean and rho."""
        noise = self._noise or self._draws()
        if not transforming():  # whose tensors end with it
            self._noise = noise
        drawn = {n: mean + scale * noise[n] for n, mean, scale in self.distributions()}
        return drawn["weight"], drawn.get("bias")

    def _local(self, mean: Tensor, variance: Tensor) -> Tensor:
        # The floor keeps the root's gradient finite where all inputs are zero.
        scale = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
        return mean + scale * self._draw(mean)

    def _variances(self) -> tuple[Tensor, Tensor | None]:
        variance = {name: scale.square() for name, _, scale in self.distributions()}
        return variance["weight"], variance.get("bias")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget()
        return super()._apply(fn, recurse)


class BayesianLinear(BayesianLayer, nn.Linear):
    """A linear layer with normal weights, see :class:`BayesianLayer`.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        reparameterization: "global" or "local".
        initial_scale: standard deviation of every weight to begin with.

    Shape:
        [..., in_features] -> [..., out_features].

    Source: Blundell et al. 2015, section 3.2; Kingma, Salimans & Welling 2015, section 2.3.

    Example:
        >>> import torch
        >>> layer = BayesianLinear(3, 2).eval()
        >>> layer(torch.zeros(1, 3)).shape, layer.kl(1.0).item() > 0
        (torch.Size([1, 2]), True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        reparameterization: str = "global",
        initial_scale: float = 0.01,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features)
        self._setup(reparameterization, initial_scale)

    def forward(self, input: Tensor) -> Tensor:
        """Returns the layer's output; random in training mode."""
        if not self.training:
            return linear(input, self.weight, self.bias)
        if self.reparameterization == "global":
            return linear(input, *self._sampled())
        mean = linear(input, self.weight, self.bias)
        return self._local(mean, linear(input.square(), *self._variances()))


class BayesianConvTranspose2d(BayesianLayer, nn.ConvTranspose2d):
    """A transposed convolution with normal weights, see :class:`BayesianLayer`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width of the kernel.
        stride: of the convolution that it transposes.
        padding: likewise.
        output_padding: rows and columns added at the output's far edges.
        reparameterization: "global" or "local".
        initial_scale: standard deviation of every weight to begin with.

    Shape:
        [B, in_channels, H, W] -> [B, out_channels, H', W'].

    Source: Blundell et al. 2015, section 3.2; Shridhar, Laumann & Liwicki 2019.

    Example:
        >>> import torch
        >>> layer = BayesianConvTranspose2d(3, 2, kernel_size=4, stride=2, padding=1)
        >>> layer(torch.rand(1, 3, 7, 7)).shape
        torch.Size([1, 2, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int | tuple[int, int] = 0,
        reparameterization: str = "global",
        initial_scale: float = 0.01,
    ) -> None:
        nn.ConvTranspose2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, output_padding
        )
        self._setup(reparameterization, initial_scale)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Returns the layer's output; random in training mode."""
        if output_size is not None:
            raise ValueError(f"output_size is not supported, got {output_size!r}")
        if not self.training:
            return self._convolve(input, self.weight, self.bias)
        if self.reparameterization == "global":
            return self._convolve(input, *self._sampled())
        mean = self._convolve(input, self.weight, self.bias)
        return self._local(mean, self._convolve(input.square(), *self._variances()))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, extra = self.stride, self.padding, self.output_padding
        return conv_transpose2d(x, weight, bias, stride, padding, extra)  # type: ignore[arg-type]
