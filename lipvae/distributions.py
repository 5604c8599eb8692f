"""Distributions on the hypersphere S^(m-1) in R^m, on the protocol of torch.distributions.

Equation (4): the posterior of the hyperspherical VAE and its prior. A vector's last dimension is
the space around the sphere, so both have ``event_shape == (m,)``. Values, means and directions are
used through their direction: a rounding error in a vector's norm does not reach a density, however
large the concentration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from lipvae import ops
from lipvae._validate import check_count
from lipvae.ops.vmf_density import log_area, moment

__all__ = ["HypersphericalUniform", "VonMisesFisher", "unit_vector"]


class _UnitVector(constraints.Constraint):
    """Vectors of norm 1, to within the square root of the dtype's epsilon."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        slack = torch.finfo(value.dtype).eps ** 0.5
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() <= slack


unit_vector = _UnitVector()


class _Concentration(constraints.Constraint):
    """Finite numbers of at least 0."""

    is_discrete = False
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & (value < torch.inf)


concentration_constraint = _Concentration()


def versine(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos of the angle between the last dimensions, with the digits that x . y would lose."""
    norm_x = torch.linalg.vector_norm(x, dim=-1)
    norm_y = torch.linalg.vector_norm(y, dim=-1)
    gap = (x - y).square().sum(-1) - (norm_x - norm_y).square()
    return gap / (2 * norm_x * norm_y)


class VonMisesFisher(Distribution):
    r"""The von Mises-Fisher distribution, density :math:`C_m(\kappa) \exp(\kappa\,\mu \cdot x)`.

    The density is with respect to the area of the sphere, equation (4). Everything is evaluated in
    float64 inside and holds for 2 <= m <= 8192 (and beyond, without kernels) and any finite
    :math:`\kappa \ge 0`: nothing under- or overflows. The log normaliser, the entropy, the mean
    and the divergence from the uniform distribution can be differentiated twice in
    :math:`\kappa`. :meth:`rsample` is reparameterised implicitly, with an unbiased gradient.

    Args:
        loc: [..., m], the mean direction mu, of norm 1, m >= 2.
        concentration: [...], kappa >= 0, with a batch shape that broadcasts with loc's.
        validate_args: whether to check the arguments and values; torch's default if None.

    Raises:
        ValueError: for shapes or dtypes that don't fit together, and, if arguments are checked, a
            `loc` that is not of norm 1 or a `concentration` that is negative or not finite.

    Source: Mardia & Jupp 2000, section 9.3.2; Davidson et al. 2018; Glazunov & Zarras 2023,
    section 4.2.1.

    Example:
        >>> import torch
        >>> q = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(20.0))
        >>> x = q.rsample((4,))
        >>> x.shape, q.log_prob(x).shape
        (torch.Size([4, 3]), torch.Size([4]))
        >>> torch.distributions.kl_divergence(q, HypersphericalUniform(3))
        tensor(2.6889)
    """

    arg_constraints = {"loc": unit_vector, "concentration": concentration_constraint}  # noqa: RUF012
    support = unit_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        if not isinstance(loc, Tensor) or not isinstance(concentration, Tensor):
            raise TypeError("loc and concentration must be torch tensors")
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ValueError(f"loc must be [..., m] with m >= 2, got shape {tuple(loc.shape)}")
        if loc.dtype != concentration.dtype or loc.device != concentration.device:
            raise ValueError(
                "concentration must have the dtype and device of loc, got "
                f"{concentration.dtype} on {concentration.device} for {loc.dtype} on {loc.device}"
            )
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch_shape, loc.shape[-1])
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def dim(self) -> int:
        """m, the dimension of the space around the sphere."""
        return self.event_shape[0]

    def _moment(self, name: str) -> Tensor:
        return moment(name, self.concentration, self.dim)

    def expand(
        self, batch_shape: Sequence[int], _instance: VonMisesFisher | None = None
    ) -> VonMisesFisher:
        """The distribution with its parameters expanded to another batch shape."""
        new = self._get_checked_instance(VonMisesFisher, _instance)
        shape = Size(batch_shape)
        new.loc = self.loc.expand(shape + self.event_shape)
        new.concentration = self.concentration.expand(shape)
        super(VonMisesFisher, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean_resultant_length(self) -> Tensor:
        r""":math:`A_m(\kappa) = I_{m/2}(\kappa)/I_{m/2-1}(\kappa)`, the norm of the mean; [...]."""
        return self._moment("mean")

    @property
    def log_normalizer(self) -> Tensor:
        r""":math:`\log C_m(\kappa)`, [...]."""
        return -log_area(self.dim) - self._moment("log_partition")

    @property
    def mean(self) -> Tensor:
        r""":math:`A_m(\kappa) \mu`, [..., m]; inside the sphere."""
        return self.mean_resultant_length.unsqueeze(-1) * self.loc

    @property
    def mode(self) -> Tensor:
        r""":math:`\mu`, [..., m]. At concentration 0 every point is a mode."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        r"""Of each coordinate, :math:`A' \mu_i^2 + (A/\kappa)(1 - \mu_i^2)`, [..., m]."""
        square = self.loc.square()
        along = self._moment("variance").unsqueeze(-1)
        return along * square + self._moment("mean_over_kappa").unsqueeze(-1) * (1 - square)

    @property
    def covariance_matrix(self) -> Tensor:
        r""":math:`(A/\kappa) (1 - \mu\mu^T) + A' \mu\mu^T`, [..., m, m]."""
        outer = self.loc.unsqueeze(-1) * self.loc.unsqueeze(-2)
        identity = torch.eye(self.dim, dtype=outer.dtype, device=outer.device)
        across = self._moment("mean_over_kappa")[..., None, None]
        return across * (identity - outer) + self._moment("variance")[..., None, None] * outer

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples [*sample_shape, ..., m], differentiable in loc and concentration."""
        shape = Size(sample_shape)
        x, _ = ops.vmf(
            self.loc.reshape(-1, self.dim), self.concentration.reshape(-1), shape.numel()
        )
        return x.view(shape + self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the area of the sphere; value [..., m] of norm 1.

        The value and loc count through their directions. The result keeps its digits where a large
        concentration meets a value close to loc.
        """
        if self._validate_args:
            self._validate_sample(value)
        at_mode = self._moment("deficit") - log_area(self.dim)
        return at_mode - self.concentration * versine(value, self.loc)

    def entropy(self) -> Tensor:
        """Differential entropy with respect to the area of the sphere, [...]."""
        return log_area(self.dim) - self._moment("kl")


class HypersphericalUniform(Distribution):
    """The uniform distribution on the sphere S^(m-1), with respect to its area, equation (4).

    Args:
        dim: m >= 2, the dimension of the space around the sphere. (The class of this name in
            s-vae-pytorch takes m - 1; ``lipvae.compat.hyperspherical_vae`` has its convention.)
        batch_shape: shape of the batch.
        dtype: of the samples; torch's default if None.
        device: of the samples.
        validate_args: whether to check values; torch's default if None.

    Example:
        >>> HypersphericalUniform(3).entropy()
        tensor(2.5310)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = unit_vector
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.dim = check_count("dim", dim, 2)
        # A scalar that carries dtype and device.
        self._zero = torch.zeros((), dtype=dtype or torch.get_default_dtype(), device=device)
        super().__init__(Size(batch_shape), Size([dim]), validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: HypersphericalUniform | None = None
    ) -> HypersphericalUniform:
        """The distribution with another batch shape."""
        new = self._get_checked_instance(HypersphericalUniform, _instance)
        new.dim, new._zero = self.dim, self._zero
        super(HypersphericalUniform, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """0, [..., m]."""
        return self._zero.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """1 / m for each coordinate, [..., m]."""
        return self.mean + 1 / self.event_shape[0]

    @property
    def covariance_matrix(self) -> Tensor:
        """The identity over m, [..., m, m]."""
        identity = torch.eye(
            *self.event_shape, *self.event_shape, dtype=self._zero.dtype, device=self._zero.device
        )
        return (identity / len(identity)).expand(*self.batch_shape, *identity.shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples [*sample_shape, ..., m]; there is no parameter to differentiate in."""
        shape = Size(sample_shape) + self.batch_shape
        zero = self._zero
        pole = torch.eye(1, *self.event_shape, dtype=zero.dtype, device=zero.device)
        x, _ = ops.vmf(pole, zero.expand(1), shape.numel())
        return x.view(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the log of the sphere's area, [...]."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(*self.event_shape))

    def entropy(self) -> Tensor:
        """Log of the sphere's area, 2 pi^(m/2) / Gamma(m/2); [...]."""
        return (self._zero + log_area(*self.event_shape)).expand(self.batch_shape)


def _same_sphere(p: Any, q: Any) -> None:
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"the distributions must live on one sphere, got event shapes "
            f"{tuple(p.event_shape)} and {tuple(q.event_shape)}"
        )


@register_kl(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Tensor:
    _same_sphere(p, q)
    kl = p._moment("kl")
    return kl.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    r"""KL_u(p) - KL_u(q) + kappa_q [(1 - A_p) - (1 - A_q) + A_p (1 - mu_p . mu_q)]."""
    _same_sphere(p, q)
    shift = p._moment("complement") - q._moment("complement")
    turn = p._moment("mean") * versine(p.loc, q.loc)
    return p._moment("kl") - q._moment("kl") + q.concentration * (shift + turn)


@register_kl(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p: HypersphericalUniform, q: VonMisesFisher) -> Tensor:
    _same_sphere(p, q)
    return q._moment("log_partition").expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


@register_kl(HypersphericalUniform, HypersphericalUniform)
def _kl_uniform_uniform(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    _same_sphere(p, q)
    return p._zero.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
