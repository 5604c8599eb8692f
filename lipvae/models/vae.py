"""The variational autoencoder with a normal posterior and prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lipvae import likelihoods, ops
from lipvae._validate import (
    check_count,
    check_like,
    check_tensor,
    check_unit_interval,
    describe,
)
from lipvae.models import networks
from lipvae.models.posterior import NormalPosterior, standard_normal_log_prob
from lipvae.noise import normal_like
from lipvae.ops._common import transforming


class VAE(nn.Module):
    """A variational autoencoder: z ~ N(0, I), x ~ p(x | z), q(z | x) normal.

    Args:
        input_shape: (C, H, W) of the images.
        latent_dim: m, dimensions of z.
        architecture: "conv" (H and W at least 8) or "fc" (any shape).
        hidden: fc: widths of the encoder's layers, by default (512, 512). conv: channels of its
            stride-2 convolutions, then the width of the linear layer after them, by default
            (32, 64, 256). The decoder takes them in reverse.
        likelihood: the family of p(x | z), see :mod:`lipvae.likelihoods`.

    Attributes:
        config: the arguments, from which an equal model can be built.

    Raises:
        TypeError, ValueError: for arguments that do not fit together.

    Source: Kingma & Welling 2014; Glazunov & Zarras 2023, section 4.

    Example:
        >>> import torch
        >>> model = VAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,))
        >>> model.elbo(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4])
    """

    default_learning_rate: ClassVar[float] = 1e-3
    posterior_family: ClassVar[str] = "normal"

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 10,
        architecture: str = "conv",
        hidden: Sequence[int] | None = None,
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__()
        self.input_shape = networks.check_input_shape(input_shape)
        self.latent_dim = check_count("latent_dim", latent_dim)
        self.architecture = architecture
        self.hidden = networks.check_hidden(architecture, hidden, self.input_shape)
        self.likelihood = likelihoods.get(likelihood)
        self.config: dict[str, Any] = {
            "input_shape": list(self.input_shape),
            "latent_dim": self.latent_dim,
            "architecture": architecture,
            "hidden": list(self.hidden),
            "likelihood": likelihood,
        }
        self.trunk = self._make_trunk()
        self._add_heads()
        self.decoder = self._make_decoder()

    def _make_trunk(self) -> nn.Sequential:
        return networks.relu_trunk(self.architecture, self.input_shape, self.hidden)

    def _add_heads(self) -> None:
        self.loc, self.log_variance = self._make_heads()

    def _make_heads(self) -> tuple[nn.Module, nn.Module]:
        width = self.hidden[-1]
        return nn.Linear(width, self.latent_dim), nn.Linear(width, self.latent_dim)

    def _make_decoder(self) -> nn.Sequential:
        return networks.decoder(
            self.architecture,
            self.input_shape,
            self.hidden,
            self.latent_dim,
            self.likelihood.parameters_per_dim,
        )

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draws what is random in a model's weights for the next training step: here, nothing."""

    def weight_kl(self) -> Tensor | None:
        """KL of the weights' posterior and prior in nats, a scalar; None for ordinary weights."""
        return None

    @property
    def input_size(self) -> int:
        """D = C * H * W, the dimensions of x."""
        return math.prod(self.input_shape)

    def check_input(self, x: Tensor) -> Tensor:
        """Requires images [B, C, H, W] of the model's shape, dtype and device, B >= 1.

        Outside training, compiled graphs and transforms of torch.func it also requires pixels in
        [0, 1]; :func:`lipvae.fit` checks its data once instead of in every step.
        """
        if isinstance(x, Tensor) and not x.dtype.is_floating_point:
            raise TypeError(
                f"x must be floating point in [0, 1], got {describe(x)}; divide 8-bit pixels by 255"
            )
        check_tensor("x", x)
        if tuple(x.shape[1:]) != self.input_shape or not x.shape[0]:
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x must have shape [B, {expected}] with B >= 1, got {describe(x)}")
        check_like("x", x, "the model's parameters", next(self.parameters()))
        traced = torch.compiler.is_compiling() or torch.compiler.is_exporting() or transforming()
        if not self.training and not traced:
            check_unit_interval("x", x)
        return x

    def encode(self, x: Tensor) -> NormalPosterior:
        """q(z | x).

        Args:
            x: [B, C, H, W] in [0, 1].

        Returns:
            The posterior of each row, with `loc` and `log_variance` [B, m].

        Raises:
            TypeError, ValueError: see :meth:`check_input`.
        """
        return self._encode(self.check_input(x))

    def _encode(self, x: Tensor) -> NormalPosterior:
        """:meth:`encode` of an input that has been checked."""
        features = self.trunk(x)
        return NormalPosterior(self.loc(features), self.log_variance(features))

    def _check_latent(self, z: Tensor) -> Tensor:
        check_tensor("z", z, min_dim=1)
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must have shape [..., {self.latent_dim}], got {describe(z)}")
        return z

    def decode(self, z: Tensor) -> Tensor:
        """The parameters of p(x | z).

        Args:
            z: [..., m].

        Returns:
            [..., P * D]: the D values of the first parameter, (c, h, w) in row-major order, then
            those of the second.
        """
        rows = self.decoder(self._check_latent(z).reshape(-1, self.latent_dim))
        return rows.reshape(*z.shape[:-1], -1)

    def decoder_head(self) -> nn.Linear | None:
        """The decoder's last layer if it is linear, else None.

        Where there is one, ``decode(z) == head(decode_hidden(z))``, and the log-likelihood can be
        fused with the head.
        """
        last = self.decoder[-1]
        return last if isinstance(last, nn.Linear) else None

    def decode_hidden(self, z: Tensor) -> Tensor:
        """The input of :meth:`decoder_head`: [..., m] -> [..., H].

        Raises:
            RuntimeError: if the decoder does not end in a linear layer.
        """
        if self.decoder_head() is None:
            raise RuntimeError(
                f"the decoder of architecture {self.architecture!r} does not end in a linear "
                "layer; use decode(z)"
            )
        rows = self._check_latent(z).reshape(-1, self.latent_dim)
        for layer in islice(self.decoder, len(self.decoder) - 1):
            rows = layer(rows)
        return rows.reshape(*z.shape[:-1], -1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z): [..., m] -> [...], in nats."""
        return standard_normal_log_prob(self._check_latent(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), equation (5).

        Args:
            x: [B, C, H, W] in [0, 1].
            z: [K, B, m].

        Returns:
            [K, B], in nats.
        """
        return ops.importance(self.decode(z), x.flatten(1), self.likelihood.name)

    def draw_noise(
        self, num_samples: int, batch: int, generator: torch.Generator | None = None
    ) -> Any:
        """Noise for the posterior's `rsample`, here standard normal [K, B, m].

        It is drawn where `generator` lives, so that a CPU generator gives the same noise to
        models on any device.
        """
        shape = (check_count("num_samples", num_samples), batch, self.latent_dim)
        return normal_like(next(self.parameters()), shape, generator)

    def elbo_terms(self, x: Tensor, noise: Any) -> tuple[Tensor, Tensor]:
        """The two terms of the evidence lower bound.

        Args:
            x: [B, C, H, W] in [0, 1].
            noise: of :meth:`draw_noise`.

        Returns:
            Mean over the samples of log p(x | z), and KL(q(z | x) || p(z)): [B] each, in nats,
            differentiable.
        """
        posterior = self.encode(x)
        log_likelihood = self.log_likelihood(x, posterior.rsample(noise))
        return log_likelihood.mean(0), posterior.kl()

    def elbo(
        self, x: Tensor, num_samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """The evidence lower bound, mean over z ~ q of log p(x | z), minus KL(q || p).

        Args:
            x: [B, C, H, W] in [0, 1].
            num_samples: samples of z for each input.
            generator: source of the noise; the global one of torch by default.

        Returns:
            [B], in nats, differentiable.
        """
        noise = self.draw_noise(num_samples, len(x), generator)
        log_likelihood, kl = self.elbo_terms(x, noise)
        return log_likelihood - kl

    def forward(self, x: Tensor) -> Tensor:
        """:meth:`elbo` with one sample."""
        return self.elbo(x)

    def _draw_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        """z ~ p(z), [n, m]."""
        return self.draw_noise(1, n, generator)[0]

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, *, mean: bool = True
    ) -> Tensor:
        """Images of z ~ p(z).

        Args:
            n: number of images.
            generator: source of the draws; the global one of torch by default.
            mean: E[x | z], what one usually looks at; False draws the pixels as well.

        Returns:
            [n, C, H, W].
        """
        parameters = self.decode(self._draw_prior(check_count("n", n), generator))
        if mean:
            x = self.likelihood.mean(parameters)
        else:
            x = self.likelihood.sample(parameters, generator)
        return x.unflatten(-1, self.input_shape)

    def extra_repr(self) -> str:
        """The configuration."""
        return ", ".join(f"{key}={value!r}" for key, value in self.config.items())
