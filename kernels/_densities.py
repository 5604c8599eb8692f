"""Log densities of one pixel and their derivatives, for the families with one or two parameters.

Everything is float32 and written with exp, log and arithmetic only, so that the interpreter runs
what the GPU runs. The terms are arranged so that none cancels: an extreme logit costs no digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import check_companion, check_operand

# Parameters a pixel.
FAMILIES = {
    "bernoulli": 1,
    "continuous_bernoulli": 1,
    "gaussian": 2,
    "discretized_logistic": 2,
    "categorical256": 256,
}

# Rows are counted in 32 bits, by tiles of at most 64.
MAX_ROWS = 2**31 - 64


@triton.jit
def _log1p(e):
    """log(1 + e) for e in [0, 1], to 2e-7 of itself: log(1 + e) / e by a minimax polynomial."""
    series = e * -0.0032440233044326305 + 0.019851453602313995
    series = series * e - 0.05695951730012894
    series = series * e + 0.10603653639554977
    series = series * e - 0.15305592119693756
    series = series * e + 0.1967593878507614
    series = series * e - 0.24954134225845337
    series = series * e + 0.3332996368408203
    series = series * e - 0.4999990165233612
    return e * (series * e + 1.0)


@triton.jit
def _log_sigmoid(t):
    return tl.minimum(t, 0.0) - _log1p(tl.exp(-tl.abs(t)))


@triton.jit
def _sigmoid(t):
    e = tl.exp(-tl.abs(t))
    return tl.where(t < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _log_sinhc(a):
    """phi(a) = log(sinh(a / 2) / (a / 2)) for a in [0, 1]."""
    square = a * a * 0.25
    return square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square * (1 / 37800))))


@triton.jit
def _log_sinhc_slope(a):
    """phi'(a) = coth(a / 2) / 2 - 1 / a for a >= 0."""
    square = a * a
    series = 1.0 - square * (1 / 60) * (
        1.0 - square * (1 / 42) * (1.0 - square * (1 / 40) * (1.0 - square * (1 / 39.6)))
    )
    far = tl.maximum(a, 1.0)
    e = tl.exp(-far)
    return tl.where(a < 1, a * (1 / 12) * series, 0.5 * (1.0 + e) / (1.0 - e) - 1.0 / far)


@triton.jit
def log_density(x, first, second, FAMILY: tl.constexpr):
    """log p(x) given the pixel's parameters; `second` counts for families with two."""
    if FAMILY == "bernoulli":
        term = x * first - tl.maximum(first, 0.0) - _log1p(tl.exp(-tl.abs(first)))
    elif FAMILY == "continuous_bernoulli":
        # x l - log((exp(l) - 1) / l)
        size = tl.abs(first)
        near = (x - 0.5) * first - _log_sinhc(tl.minimum(size, 1.0))
        reach = tl.maximum(size, 1.0)
        far = x * first - tl.maximum(first, 0.0) - tl.log((1.0 - tl.exp(-reach)) / reach)
        term = tl.where(size < 1, near, far)
    elif FAMILY == "gaussian":
        standard = (x - first) * tl.exp(-second)
        term = -0.5 * standard * standard - second - 0.9189385332046727
    else:
        tl.static_assert(FAMILY == "discretized_logistic")
        inverse = tl.exp(-second)
        upper = (x + 1 / 510 - first) * inverse
        lower = (x - 1 / 510 - first) * inverse
        width = inverse * (1 / 255)
        # log(1 - exp(-width)); log(width) needs no logarithm.
        near = -second - 5.541263545158426 - 0.5 * width + _log_sinhc(tl.minimum(width, 1.0))
        far = tl.log(1.0 - tl.exp(-tl.maximum(width, 1.0)))
        term = tl.where(width < 1, near, far) + _log_sigmoid(upper) + _log_sigmoid(-lower)
        term = tl.where(x < 0.5 / 255, _log_sigmoid(upper), term)
        term = tl.where(x > 254.5 / 255, _log_sigmoid(-lower), term)
    return term


@triton.jit
def log_density_slope(x, first, second, FAMILY: tl.constexpr):
    """Derivatives of :func:`log_density` with respect to both parameters."""
    other = tl.zeros_like(first)
    if FAMILY == "bernoulli":
        slope = x - _sigmoid(first)
    elif FAMILY == "continuous_bernoulli":
        bend = _log_sinhc_slope(tl.abs(first))
        slope = (x - 0.5) - tl.where(first < 0, -bend, bend)
    elif FAMILY == "gaussian":
        inverse = tl.exp(-second)
        standard = (x - first) * inverse
        slope = standard * inverse
        other = standard * standard - 1.0
    else:
        tl.static_assert(FAMILY == "discretized_logistic")
        inverse = tl.exp(-second)
        upper = (x + 1 / 510 - first) * inverse
        lower = (x - 1 / 510 - first) * inverse
        width = inverse * (1 / 255)
        above = tl.where(x > 254.5 / 255, 0.0, _sigmoid(-upper))
        below = tl.where(x < 0.5 / 255, 0.0, _sigmoid(lower))
        slope = inverse * (below - above)
        # width / (exp(width) - 1), the share of the inner bins' shrinking mass.
        small = tl.minimum(width, 1.0)
        near = 1.0 - 0.5 * small + small * _log_sinhc_slope(small)
        e = tl.exp(-tl.maximum(width, 1.0))
        share = tl.where(width < 1, near, width * e / (1.0 - e))
        inner = (x >= 0.5 / 255) & (x <= 254.5 / 255)
        other = lower * below - upper * above - tl.where(inner, share, 0.0)
    return slope, other


def check_likelihood(
    parameters: object, target: object, family: str
) -> tuple[Tensor, Tensor, int, int, int]:
    """Checked parameters [K, B, P * D] and target [B, D], contiguous; K, B, D."""
    count = check_family(family)
    parameters = check_operand("parameters", parameters, dim=3)
    target = check_operand("target", target, dim=2)
    k, b, width = parameters.shape
    if width % count:
        raise ValueError(
            f"parameters must have {count} values a dimension for {family}, got {width} in all"
        )
    if k * b > MAX_ROWS:
        raise ValueError(f"parameters must have at most {MAX_ROWS} rows, got {k} x {b}")
    d = width // count
    return parameters, check_companion("target", target, parameters, (b, d)), k, b, d


def check_family(family: str) -> int:
    """Parameters a pixel of a family."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    return FAMILIES[family]


def zeros(like: Tensor, *shape: int) -> Tensor:
    """float32 zeros on `like`'s device."""
    return torch.zeros(shape, dtype=torch.float32, device=like.device)
