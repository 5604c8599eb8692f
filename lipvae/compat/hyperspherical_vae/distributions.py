"""VonMisesFisher and HypersphericalUniform with the signatures and shapes of s-vae-pytorch.

The differences from :mod:`lipvae.distributions`: a scale [..., 1] in place of a concentration
[...], and a uniform distribution whose `dim` is that of the sphere, m - 1. Samples, densities,
divergences and gradients are those of :mod:`lipvae.distributions`; where s-vae-pytorch's are wrong
(kappa > 10 unless kappa >> m) the results differ from it on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipvae import distributions as native

__all__ = ["HypersphericalUniform", "VonMisesFisher"]


def _shape(shape: Sequence[int] | int) -> Sequence[int]:
    return (shape,) if isinstance(shape, int) else shape


class VonMisesFisher(native.VonMisesFisher):
    """vMF(loc, scale): loc [..., m] of norm 1, scale [..., 1] or a number, the concentration.

    `k` bounded the attempts of s-vae-pytorch's sampler; it is accepted and has no effect.

    Raises:
        ValueError: if the last dimension of `scale` is not 1, and as
            :class:`lipvae.distributions.VonMisesFisher` does.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        validate_args: bool | None = None,
        k: int = 1,
    ) -> None:
        scale = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)
        if scale.dim() and scale.shape[-1] != 1:
            raise ValueError(f"scale must be [..., 1], got shape {tuple(scale.shape)}")
        self.k = k
        super().__init__(loc, scale.squeeze(-1) if scale.dim() else scale, validate_args)

    @property
    def scale(self) -> Tensor:
        """The concentration, [..., 1]."""
        return self.concentration.unsqueeze(-1)

    @property
    def stddev(self) -> Tensor:
        """The concentration, [..., 1]: what s-vae-pytorch calls so."""
        return self.scale

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.loc.device

    def rsample(self, shape: Sequence[int] | int = ()) -> Tensor:
        """Samples [*shape, ..., m], differentiable in loc and scale."""
        return super().rsample(_shape(shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        """The distribution with its parameters expanded to another batch shape."""
        new = self._get_checked_instance(VonMisesFisher, _instance)
        new.k = self.k
        super().expand(batch_shape, new)
        return new


class HypersphericalUniform(native.HypersphericalUniform):
    """The uniform distribution on the sphere of dimension `dim`, in a space of dim + 1.

    `entropy` and `log_prob` are those of :class:`lipvae.distributions.HypersphericalUniform`.
    """

    def __init__(
        self, dim: int, validate_args: bool | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(dim + 1, device=device, validate_args=validate_args)
        self.dim = dim
        self.device = torch.device(device)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HypersphericalUniform:
        """The distribution with another batch shape."""
        new = self._get_checked_instance(HypersphericalUniform, _instance)
        new.device = self.device
        super().expand(batch_shape, new)
        return new

    def rsample(self, shape: Sequence[int] | int = ()) -> Tensor:
        """Samples [*shape, ..., dim + 1]."""
        return super().rsample(_shape(shape))
