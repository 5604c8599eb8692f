"""Density of the von Mises-Fisher distribution, equation (4), and its derivatives in kappa.

Everything comes from the cumulant generating function of w = <mu, x> under the uniform
distribution on the sphere S^(m-1),

    Lambda(kappa) = log E exp(kappa w) = log[Gamma(m/2) (2/kappa)^nu I_nu(kappa)],  nu = m/2 - 1.

Its first derivatives are the mean A, the variance and the third cumulant of w under vMF(mu, kappa).
Two expansions cover every m >= 2 and kappa >= 0:

* kappa < 20: the power series of 0F1(; m/2; kappa^2/4), whose terms are all positive.
* kappa >= 20: Debye's expansion of log I_nu in powers of 1/r, r = hypot(nu, kappa), uniform in
  nu / r (DLMF 10.41.3 after taking the logarithm; at nu = 0 it is Hankel's). Differentiating it
  term by term keeps the digits that 1 - A^2 - (m-1) A / kappa would lose.

Neither underflows, and both run in float64 on the tensor's device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lipvae.ops._common import compiling, refuse_transforms

_SPLIT = 20.0
_SERIES_TERMS = 40
_DEBYE_TERMS = 22


class Moments(NamedTuple):
    """What the density needs at one kappa; float64, the shape of kappa.

    Attributes:
        log_partition: Lambda.
        deficit: kappa - Lambda.
        mean: A.
        complement: 1 - A.
        mean_over_kappa: A / kappa.
        variance: A', the variance of w.
        third: A'', the third cumulant of w.
        kl: kappa A - Lambda, the divergence from the uniform distribution.
    """

    log_partition: Tensor
    deficit: Tensor
    mean: Tensor
    complement: Tensor
    mean_over_kappa: Tensor
    variance: Tensor
    third: Tensor
    kl: Tensor


def log_area(dim: int) -> float:
    """Log of the area of the sphere S^(m-1), 2 pi^(m/2) / Gamma(m/2)."""
    return math.log(2.0) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


@functools.cache
def _debye_polynomials() -> tuple[tuple[Fraction, ...], ...]:
    """P_k(q), k = 1.., of log sum_k U_k(p) / nu^k = sum_k P_k(q) / r^k with p = nu/r, q = p^2.

    U_k(p) = p^k u_k(q), U_(k+1)(p) = p^2 (1-p^2) U_k'(p) / 2 + int_0^p (1 - 5 t^2) U_k(t) dt / 8.
    """
    series = [[Fraction(1)]]
    for k in range(_DEBYE_TERMS):
        following = [Fraction(0)] * (k + 2)
        for j, c in enumerate(series[-1]):
            power = k + 2 * j
            following[j] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            following[j + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        series.append(following)
    # k log-coefficients: k L_k = k u_k - sum_{i<k} i L_i u_(k-i).
    logs: list[list[Fraction]] = [[Fraction(0)]]
    for k in range(1, _DEBYE_TERMS + 1):
        total = [k * c for c in series[k]]
        for i in range(1, k):
            for a, left in enumerate(logs[i]):
                for b, right in enumerate(series[k - i]):
                    total[a + b] -= i * left * right
        logs.append([c / k for c in total])
    return tuple(tuple(poly) for poly in logs[1:])


@functools.cache
def _debye_table(device: torch.device) -> Tensor:
    """Coefficients [q power, 4 * k] of S, r^2 S' / kappa, r^2 S'' and r^4 S''' / kappa.

    S = sum c q^j r^-k is sum c nu^2j r^-n with n = k + 2j, and kappa^2 / r^2 = 1 - q.
    """
    terms = _DEBYE_TERMS
    table = [[Fraction(0)] * (4 * terms) for _ in range(terms + 2)]
    for k, poly in enumerate(_debye_polynomials(), start=1):
        for j, c in enumerate(poly):
            n = k + 2 * j
            second, third = n * (n + 2), n * (n + 2) * (n + 4)
            at = k - 1
            table[j][at] += c
            table[j][terms + at] -= n * c
            table[j][2 * terms + at] += (second - n) * c
            table[j + 1][2 * terms + at] -= second * c
            table[j][3 * terms + at] += (3 * second - third) * c
            table[j + 1][3 * terms + at] += third * c
    numbers = [[float(c) for c in row] for row in table]
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.float64, device=device)


@functools.cache
def _stirling_remainder(nu: float) -> float:
    """Log Gamma(nu + 1) - (nu log nu - nu + log(2 pi nu) / 2), for nu of at least _SPLIT."""
    # The power of q is 0 .. k, and at kappa = 0 both q and p are 1.
    return -sum(
        float(sum(poly, Fraction(0))) / nu**k
        for k, poly in reversed(list(enumerate(_debye_polynomials(), start=1)))
    )


def _each_times(rows: Tensor, table: Tensor) -> Tensor:
    """rows @ table with a product for each row: one for all may round a row by its place."""
    batch = table.expand(*rows.shape[:-1], *table.shape)
    return (rows.unsqueeze(-2) @ batch).squeeze(-2)


def _series(kappa: Tensor, dim: int) -> Moments:
    half = 0.5 * dim
    x = 0.25 * kappa * kappa
    k = torch.arange(1, _SERIES_TERMS + 1, dtype=torch.float64, device=kappa.device)
    # tau_k = x^(k-1) / (k! (m/2)_k) and sigma_k = tau_k / x for k >= 2.
    k = k[1:]
    ratio = x.unsqueeze(-1) / (k * (half + k - 1))
    ratio[..., 0] = 1 / (2 * half * (half + 1))
    sigma = torch.cumprod(ratio, -1)
    weights = [torch.ones_like(k), k, k * (2 * k - 1), 2 * k * (2 * k - 1) * (2 * k - 2)]
    tail = _each_times(sigma, torch.stack(weights, -1))
    first = 1 / half
    excess = x * (first + x * tail[..., 0])
    value = 1 + excess
    mean_over_kappa = 0.5 * (first + x * tail[..., 1]) / value
    mean = kappa * mean_over_kappa
    second = 0.5 * (first + x * tail[..., 2]) / value
    third = kappa / 16 * tail[..., 3] / value
    log_partition = torch.log1p(excess)
    return Moments(
        log_partition,
        kappa - log_partition,
        mean,
        1 - mean,
        mean_over_kappa,
        second - mean * mean,
        third - 3 * mean * second + 2 * mean * mean * mean,
        kappa * mean - log_partition,
    )


def _debye(kappa: Tensor, dim: int) -> Moments:
    nu = 0.5 * dim - 1
    r = torch.hypot(kappa, torch.full_like(kappa, nu))
    p = nu / r
    q, cosine = p * p, kappa / r
    powers = torch.cumprod(torch.stack([torch.ones_like(q)] + [q] * (_DEBYE_TERMS + 1), -1), -1)
    inverse = torch.cumprod((1 / r).unsqueeze(-1).expand(*r.shape, _DEBYE_TERMS), -1)
    table = _debye_table(kappa.device)
    by_order = _each_times(powers, table).unflatten(-1, (4, _DEBYE_TERMS))
    s0, s1, s2, s3 = torch.einsum("...fk,...k->f...", by_order, inverse).unbind(0)

    # I_nu ~ exp(r) (kappa / (nu + r))^nu (2 pi r)^(-1/2) exp(S).
    gap = kappa * cosine / (1 + p)  # r - nu
    excess = nu * p / (1 + cosine)  # r - kappa
    mean = cosine / (1 + p) - 0.5 * cosine / r + cosine * s1 / r
    complement = (p + p * p / (1 + cosine)) / (1 + p) + 0.5 * cosine / r - cosine * s1 / r
    variance = (p / (1 + p) + (0.5 * (cosine * cosine - q) + s2) / r) / r
    third = (
        cosine / r / r * ((3 * q - cosine * cosine + s3) / r - p * (p + 2) / ((1 + p) * (1 + p)))
    )
    if nu >= _SPLIT:
        bend = nu * torch.log1p(gap / (2 * nu)) + 0.5 * torch.log1p(gap / nu)
        constant = _stirling_remainder(nu)
    else:
        bend = (nu + 0.5) * torch.log(r) + nu * torch.log1p(p) - nu
        constant = math.lgamma(nu + 1) + nu * math.log(2.0) - 0.5 * math.log(2 * math.pi)
    rest = bend - s0 - constant
    return Moments(
        log_partition=gap - rest,
        deficit=nu - excess + rest,
        mean=mean,
        complement=complement,
        mean_over_kappa=mean / kappa,
        variance=variance,
        third=third,
        kl=rest - cosine * cosine * (0.5 - s1),
    )


def _moments(kappa: Tensor, dim: int) -> Moments:
    kappa = kappa.detach().to(torch.float64)
    small = kappa < _SPLIT
    near = _series(torch.where(small, kappa, torch.zeros_like(kappa)), dim)
    far = _debye(torch.where(small, torch.full_like(kappa, _SPLIT), kappa), dim)
    return Moments(*(torch.where(small, a, b) for a, b in zip(near, far, strict=True)))


@torch.library.custom_op("lipvae::vmf_moments", mutates_args=())
def _op(kappa: Tensor, dim: int) -> Tensor:
    return torch.stack(_moments(kappa, dim))


@_op.register_fake
def _(kappa: Tensor, dim: int) -> Tensor:
    return kappa.new_empty((len(Moments._fields), *kappa.shape), dtype=torch.float64)


def moments(kappa: Tensor, dim: int) -> Moments:
    """Evaluates the density's functions of kappa, without autograd.

    Args:
        kappa: concentration >= 0, any shape and floating dtype.
        dim: m >= 2, the dimension of the space around the sphere.

    Returns:
        float64 tensors of the shape of `kappa`.

    Raises:
        NotImplementedError: inside a transform of torch.func, or for a tangent.
    """
    refuse_transforms("the density of vMF", kappa)
    if compiling():
        return Moments(*torch.ops.lipvae.vmf_moments(kappa.detach(), dim).unbind(0))
    return _moments(kappa, dim)


# d/dkappa of each function, in terms of the others.
_DERIVATIVES: dict[str, Callable[[Callable[[str], Tensor], Tensor, int], Tensor]] = {
    "log_partition": lambda of, kappa, dim: of("mean"),
    "deficit": lambda of, kappa, dim: of("complement"),
    "mean": lambda of, kappa, dim: of("variance"),
    "complement": lambda of, kappa, dim: -of("variance"),
    # (m - 1) A / kappa = 1 - A^2 - A'
    "mean_over_kappa": lambda of, kappa, dim: (
        -(2 * of("mean") * of("variance") + of("third")) / (dim - 1)
    ),
    "variance": lambda of, kappa, dim: of("third"),
    "kl": lambda of, kappa, dim: kappa * of("variance"),
}


def _op_setup(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)
    ctx.dim = inputs[1]


def _op_vjp(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    kappa, output = ctx.saved_tensors
    values = Moments(*output.unbind(0))
    total = torch.zeros_like(output[0])
    for name, derivative in _DERIVATIVES.items():
        slope = derivative(lambda field: getattr(values, field), kappa, ctx.dim)
        total = total + grad[Moments._fields.index(name)] * slope
    return total.to(kappa.dtype), None


_op.register_autograd(_op_vjp, setup_context=_op_setup)


class _Moment(torch.autograd.Function):
    """One function of kappa. Its gradient is made of the others, so it differentiates twice."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int, name: str, known: Moments | None) -> Tensor:
        values = moments(kappa, dim) if known is None else known
        ctx.save_for_backward(kappa, *values)
        ctx.dim, ctx.name = dim, name
        return getattr(values, name).to(kappa.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        kappa, *saved = ctx.saved_tensors
        values = Moments(*saved)
        if ctx.name not in _DERIVATIVES:
            raise NotImplementedError("the density of vMF has no third derivative in kappa")

        def of(name: str) -> Tensor:
            if torch.is_grad_enabled():
                return _Moment.apply(kappa, ctx.dim, name, values)
            return getattr(values, name)

        slope = _DERIVATIVES[ctx.name](of, kappa, ctx.dim)
        return grad * slope.to(grad.dtype), None, None, None


def moment(name: str, kappa: Tensor, dim: int) -> Tensor:
    """One of the functions of :class:`Moments`, differentiable in kappa.

    In eager mode it can be differentiated until the third cumulant is reached, which ends the
    chain: twice for all but the variance and A / kappa. Compiled, once.

    Args:
        name: a field of :class:`Moments` but "third".
        kappa: concentration >= 0, any shape, float32 or float64.
        dim: m >= 2, the dimension of the space around the sphere.

    Returns:
        The shape and dtype of `kappa`; evaluated in float64.

    Raises:
        NotImplementedError: inside a transform of torch.func, or for a tangent.
    """
    refuse_transforms("the density of vMF", kappa)
    if compiling():
        index = Moments._fields.index(name)
        return torch.ops.lipvae.vmf_moments(kappa, dim)[index].to(kappa.dtype)
    return _Moment.apply(kappa, dim, name, None)
