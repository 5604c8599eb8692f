"""The VAE of the paper: its encoder is Lipschitz, so its latent space is compact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import nn

from lipvae._validate import check_count, check_positive
from lipvae.models import networks
from lipvae.models.vae import VAE
from lipvae.nn import (
    Certificate,
    LipschitzLinear,
    certify,
    lipschitz_layers,
    set_lipschitz,
)


def default_lipschitz(latent_dim: int) -> float:
    """M = floor(sqrt(m) + 2), equation (2): 5 for m = 10, 10 for m = 70."""
    return float(math.floor(math.sqrt(latent_dim) + 2))


class LipschitzVAE(VAE):
    """A VAE whose encoder is M-Lipschitz in L-infinity, equation (2).

    The encoder is made of the layers of equation (1). Each of its K layers, the head included,
    has the radius r = M^(1/K), so the mean of q(z | x) is M-Lipschitz in x, and over [0, 1]^n it
    stays within M/2 of its value at the middle: the latent space is compact. The decoder is that
    of :class:`VAE`, or of Lipschitz layers too.

    Args:
        input_shape: (C, H, W) of the images.
        latent_dim: m, dimensions of z.
        architecture: "conv" (H and W at least 8) or "fc" (any shape).
        hidden: as in :class:`VAE`; every width a multiple of `group_size`.
        likelihood: the family of p(x | z), see :mod:`lipvae.likelihoods`.
        lipschitz: M; by default floor(sqrt(m) + 2).
        group_size: g of GroupSort; 2 is MaxMin.
        constrain_log_variance: whether the log-variance is M-Lipschitz too.
        decoder_lipschitz: the decoder's constant, from z to the likelihood's parameters, both in
            L-infinity; None for an ordinary decoder.

    Raises:
        TypeError, ValueError: for arguments that do not fit together.

    Source: Glazunov & Zarras 2023, section 4.2.

    Example:
        >>> import torch
        >>> model = LipschitzVAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,))
        >>> model.lipschitz, model.certificate().lipschitz <= 3.0
        (3.0, True)
    """

    # Faster learning gains a few nats and loses outliers: docs/results.md.
    default_learning_rate: ClassVar[float] = 1e-3

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 10,
        architecture: str = "conv",
        hidden: Sequence[int] | None = None,
        likelihood: str = "bernoulli",
        lipschitz: float | None = None,
        group_size: int = 2,
        constrain_log_variance: bool = True,
        decoder_lipschitz: float | None = None,
    ) -> None:
        check_count("latent_dim", latent_dim)
        if lipschitz is None:
            lipschitz = default_lipschitz(latent_dim)
        self.lipschitz = check_positive("lipschitz", lipschitz)
        self.group_size = check_count("group_size", group_size)
        if not isinstance(constrain_log_variance, bool):
            raise TypeError(
                f"constrain_log_variance must be a bool, got {constrain_log_variance!r}"
            )
        self.constrain_log_variance = constrain_log_variance
        if decoder_lipschitz is not None:
            decoder_lipschitz = check_positive("decoder_lipschitz", decoder_lipschitz)
        self.decoder_lipschitz = decoder_lipschitz
        super().__init__(input_shape, latent_dim, architecture, hidden, likelihood)
        self.config |= {
            "lipschitz": self.lipschitz,
            "group_size": group_size,
            "constrain_log_variance": constrain_log_variance,
            "decoder_lipschitz": decoder_lipschitz,
        }

    def _make_trunk(self) -> nn.Sequential:
        bad = [width for width in self.hidden if width % self.group_size]
        if bad:
            raise ValueError(
                f"group_size must divide every width in hidden {self.hidden}, got {self.group_size}"
            )
        return networks.lipschitz_trunk(
            self.architecture, self.input_shape, self.hidden, self.group_size
        )

    def _make_heads(self) -> tuple[nn.Module, nn.Module]:
        width, m = self.hidden[-1], self.latent_dim
        loc = LipschitzLinear(width, m)
        set_lipschitz([*lipschitz_layers(self.trunk), loc], self.lipschitz)
        if not self.constrain_log_variance:
            return loc, nn.Linear(width, m)
        return loc, LipschitzLinear(width, m, lipschitz=loc.lipschitz)

    def _make_decoder(self) -> nn.Sequential:
        if self.decoder_lipschitz is None:
            return super()._make_decoder()
        decoder = networks.lipschitz_decoder(
            self.architecture,
            self.input_shape,
            self.hidden,
            self.latent_dim,
            self.likelihood.parameters_per_dim,
            self.group_size,
        )
        set_lipschitz(lipschitz_layers(decoder), self.decoder_lipschitz)
        return decoder

    def certificate(self, head: str = "loc") -> Certificate:
        """What the encoder's means can be over [0, 1]^n, see :func:`lipvae.nn.certify`.

        Args:
            head: "loc", or "log_variance" where that is constrained.

        Raises:
            ValueError: for another head, or one that is not constrained.
        """
        if head not in ("loc", "log_variance"):
            raise ValueError(f"head must be 'loc' or 'log_variance', got {head!r}")
        if head == "log_variance" and not self.constrain_log_variance:
            raise ValueError("head 'log_variance' is not constrained in this model")
        path = nn.Sequential(self.trunk, getattr(self, head))
        found = certify(path, input_shape=self.input_shape)
        return replace(found, bound=max(found.bound, self.lipschitz))
