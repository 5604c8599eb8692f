"""The VAE whose latent space is a sphere: equation (4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from lipvae import ops
from lipvae._validate import check_count
from lipvae.models.posterior import Streams, VonMisesFisherPosterior
from lipvae.models.vae import VAE
from lipvae.ops.vmf import draw_seed
from lipvae.ops.vmf_density import log_area


class HypersphericalVAE(VAE):
    r"""A VAE on the sphere: z uniform on S^(m-1), q(z | x) von Mises-Fisher, equation (4).

    The sphere is compact, and its uniform distribution has no mean to be drawn to. The encoder
    gives a mean direction and a concentration,

    .. math:: \mu(x) = h / \|h\|, \qquad \kappa(x) = 1 + m \log(1 + e^s),

    h in R^m and s in R from two linear heads. What :math:`\kappa` does depends on
    :math:`\kappa / m`, hence the factor: at the start samples keep to the mean direction in any
    dimension. :math:`\kappa \ge 1` keeps the gradient of the mean direction from vanishing. The
    divergence from the prior depends on :math:`\kappa` alone, and samples have an unbiased
    gradient in both (:func:`lipvae.functional.sample_vmf`).

    Args:
        input_shape: (C, H, W) of the images.
        latent_dim: m >= 2, the dimension of the space around the sphere. The sphere S^(m-1) has
            m - 1 dimensions: m = 3 is the ordinary sphere.
        architecture: "conv" (H and W at least 8) or "fc" (any shape).
        hidden: as in :class:`VAE`.
        likelihood: the family of p(x | z), see :mod:`lipvae.likelihoods`.

    Raises:
        TypeError, ValueError: for arguments that do not fit together.

    Source: Davidson et al. 2018; Glazunov & Zarras 2023, section 4.2.1.

    Example:
        >>> import torch
        >>> model = HypersphericalVAE((1, 8, 8), latent_dim=3, architecture="fc", hidden=(32,))
        >>> posterior = model.encode(torch.rand(4, 1, 8, 8))
        >>> posterior.loc.norm(dim=1).allclose(torch.ones(4)), posterior.concentration.shape
        (True, torch.Size([4]))
    """

    posterior_family: ClassVar[str] = "von Mises-Fisher"

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 3,
        architecture: str = "conv",
        hidden: Sequence[int] | None = None,
        likelihood: str = "bernoulli",
    ) -> None:
        check_count("latent_dim", latent_dim, 2)
        super().__init__(input_shape, latent_dim, architecture, hidden, likelihood)

    def _add_heads(self) -> None:
        width = self.hidden[-1]
        self.loc, self.concentration = nn.Linear(width, self.latent_dim), nn.Linear(width, 1)

    def encode(self, x: Tensor) -> VonMisesFisherPosterior:  # type: ignore[override]
        """q(z | x).

        Args:
            x: [B, C, H, W] in [0, 1].

        Returns:
            The posterior of each row, with `loc` [B, m] of norm 1 and `concentration` [B].

        Raises:
            TypeError, ValueError: see :meth:`check_input`.
        """
        return self._encode(self.check_input(x))

    def _encode(self, x: Tensor) -> VonMisesFisherPosterior:  # type: ignore[override]
        features = self.trunk(x)
        excess = softplus(self.concentration(features).squeeze(-1))
        return VonMisesFisherPosterior(
            normalize(self.loc(features), dim=-1), 1 + self.latent_dim * excess
        )

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), minus the log of the sphere's area: [..., m] -> [...], in nats."""
        self._check_latent(z)
        return z.new_full(z.shape[:-1], -log_area(self.latent_dim))

    def draw_noise(
        self, num_samples: int, batch: int, generator: torch.Generator | None = None
    ) -> Streams:
        """Random streams for the posterior's `rsample`; every row takes its own.

        The seed is drawn where `generator` lives, so that a CPU generator gives the same streams
        to models on any device.
        """
        seed = draw_seed(next(self.parameters()).device, generator)
        return Streams(seed, check_count("num_samples", num_samples))

    def _draw_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        like = next(self.parameters())
        pole = torch.eye(1, self.latent_dim, dtype=like.dtype, device=like.device)
        seed = draw_seed(like.device, generator)
        return ops.vmf(pole, pole.new_zeros(1), n, seed)[0].squeeze(1)
