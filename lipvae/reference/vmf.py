"""Sampling of the von Mises-Fisher distribution and its reparameterisation, equation (4).

A sample is x = w mu + sqrt(1 - w^2) v with a tangent v of norm 1, uniform among the directions
orthogonal to mu. Random words come from Philox streams keyed by (seed, index); the kernels use the
same words in the same way, so that their samples are the reference's up to rounding:

* t = 1 - w by Wood's rejection sampler. Attempt j takes block j of (stream 0x766D6601, index).
* v from standard normals by Box & Muller. Block b of (stream 0x766D6602, index) makes normals
  4b .. 4b+3 in float32 and 2b, 2b+1 in float64.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

STREAM_T = 0x766D6601
STREAM_TANGENT = 0x766D6602
ATTEMPTS = 128  # all fail with a probability below 1e-58; the last proposal then stands

_LOW = 0xFFFFFFFF


def philox4x32(block: Tensor, stream: int, index: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 of the counters (block, stream, index, index >> 32).

    Args:
        block: int64, broadcast against `index`, below 2^32.
        stream: below 2^32.
        index: int64.
        seed: int64 [1] on the same device; its 64 bits are the key.

    Returns:
        Four words, int64 in [0, 2^32).
    """
    block, index = torch.broadcast_tensors(block, index)
    c0, c1 = block & _LOW, torch.full_like(block, stream)
    c2, c3 = index & _LOW, (index >> 32) & _LOW
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        # A product may wrap to a negative number; a masked shift still gives its halves.
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            ((second >> 32) & _LOW) ^ c1 ^ k0,
            second & _LOW,
            ((first >> 32) & _LOW) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def _uniform52(low: Tensor, high: Tensor) -> Tensor:
    bits = (high << 20) | (low >> 12)
    return (bits.double() + 0.5) * 2.0**-52


def _uniform32(word: Tensor) -> Tensor:
    return (word.double() + 0.5) * 2.0**-32


def _beta(words: tuple[Tensor, ...], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """1 + X and 1 - X of the symmetric Beta variable X, and the uniform number of the test."""
    if dim == 2:
        half = math.pi * _uniform52(words[0], words[1])
        return 2 * half.cos().square(), 2 * half.sin().square(), _uniform52(words[2], words[3])
    log_rest = _uniform52(words[0], words[1]).log() * (2 / (dim - 2))
    angle = 2 * math.pi * _uniform32(words[2])
    radius_squared = -torch.expm1(log_rest)
    x = radius_squared.sqrt() * angle.cos()
    rest = log_rest.exp() + radius_squared * angle.sin().square()  # 1 - X^2
    large = 1 + x.abs()
    small = rest / large
    return (
        torch.where(x >= 0, large, small),
        torch.where(x >= 0, small, large),
        _uniform32(words[3]),
    )


def sample_t(
    kappa: Tensor, index: Tensor, dim: int, seed: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """t = 1 - <mu, x> of one sample for each index.

    With d = m - 1, b = d / (2 kappa + sqrt(4 kappa^2 + d^2)), x0 = (1 - b) / (1 + b) and
    t0 = 1 - x0, a symmetric Beta variable X with density (1 - X^2)^((m-3)/2) gives the proposal
    t = t0 (1 + X) / (1 - y), y = x0 X, accepted where log U <= -d (y / (1 - y) + log(1 - y)). This
    is Wood's acceptance test without the terms that cancel. For m = 3,
    t = -log(1 - V (1 - exp(-2 kappa))) / kappa.

    Args:
        kappa: float64, concentration >= 0.
        index: int64, the shape of `kappa`.
        dim: m >= 2.
        seed: int64 [1].

    Returns:
        t, float64, and the words of the accepted attempt.

    Source: Wood 1994, "Simulation of the von Mises Fisher distribution"; Ulrich 1984 for X.
    """
    if dim == 3:
        words = philox4x32(torch.zeros_like(index), STREAM_T, index, seed)
        v = _uniform52(words[0], words[1])
        some = torch.where(kappa > 0, kappa, torch.ones_like(kappa))
        t = -torch.log1p(v * torch.expm1(-2 * some)) / some
        return torch.where(kappa > 0, t, 2 * v) + 0 * kappa, words
    d = dim - 1
    ratio = 2 * kappa / d
    b = 1 / (ratio + torch.hypot(ratio, torch.ones_like(ratio)))
    x0, t0 = (1 - b) / (1 + b), 2 * b / (1 + b)
    t = torch.full_like(kappa, math.nan)
    kept = tuple(torch.zeros_like(index) for _ in range(4))
    left = torch.arange(kappa.numel(), device=kappa.device)
    for attempt in range(ATTEMPTS):
        words = philox4x32(left.new_full((1,), attempt), STREAM_T, index[left], seed)
        plus, minus, u = _beta(words, dim)
        y = x0[left] * (plus - minus) / 2
        rest = t0[left] + x0[left] * minus  # 1 - y
        rejected = u.log() + d * (y / rest + rest.log()) > 0
        t[left] = t0[left] * plus / rest
        for store, word in zip(kept, words, strict=True):
            store[left] = word
        left = left[rejected]
        if not len(left):
            break
    return t, kept


def _normals(index: Tensor, count: int, seed: Tensor, dtype: torch.dtype) -> Tensor:
    per_block = 4 if dtype == torch.float32 else 2
    blocks = torch.arange(-(-count // per_block), device=index.device)
    words = philox4x32(blocks, STREAM_TANGENT, index.unsqueeze(-1), seed)
    if per_block == 4:
        w = torch.stack(words, -1).unflatten(-1, (2, 2))
        # log u with u = (i + 1/2) / 2^31, accurate also where u is near 1.
        u = ((w[..., 0] >> 1).double() + 0.5) * 2.0**-31
        angle = 2 * math.pi * w[..., 1].double() * 2.0**-32
    else:
        u = _uniform52(words[0], words[1]).unsqueeze(-1)
        angle = 2 * math.pi * _uniform52(words[2], words[3]).unsqueeze(-1)
    radius = (-2 * u.log()).sqrt()
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return pairs.flatten(1)[:, :count]


def sample_vmf(
    loc: Tensor,
    concentration: Tensor,
    samples: int,
    seed: Tensor,
    start: int = 0,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Samples of vMF(loc[row], concentration[row]).

    Args:
        loc: [rows, m], used through its direction.
        concentration: [rows], >= 0.
        samples: S.
        seed: int64 [1], on the device of `loc`.
        start: index of the first sample.
        shared: whether all rows share the random numbers of sample s. Sample (s, row) has the
            index start + s if so, and start + s * rows + row if not.

    Returns:
        x [S, rows, m] in the dtype of `loc`, and t = 1 - <mu, x>, float64 [S, rows].
    """
    rows, dim = loc.shape
    flat = torch.arange(samples * rows, device=loc.device)
    index = start + (flat.div(max(rows, 1), rounding_mode="floor") if shared else flat)
    mu = loc.double()
    mu = mu / mu.norm(dim=-1, keepdim=True)
    kappa = concentration.double().expand(samples, rows).reshape(-1)
    t, words = sample_t(kappa, index, dim, seed)
    if dim == 2:
        v = 1.0 - 2.0 * (words[0] & 1).double().unsqueeze(-1)
    elif dim == 3:
        angle = 2 * math.pi * _uniform52(words[2], words[3])
        v = torch.stack([angle.cos(), angle.sin()], -1)
    else:
        dtype = torch.float64 if loc.dtype == torch.float64 else torch.float32
        v = _normals(index, dim - 1, seed, dtype)
        v = v / v.norm(dim=-1, keepdim=True)
    t, v = t.view(samples, rows), v.view(samples, rows, dim - 1)
    # The reflection that takes e0 to -sign(mu0) mu, applied to [-sign(mu0) w, s v].
    sign = torch.where(mu[:, 0] < 0, -1.0, 1.0)
    w, s = 1 - t, (t * (2 - t)).sqrt()
    c = s * (v * mu[:, 1:]).sum(-1)
    first = mu[:, 0] * w - sign * c
    along = (w - c / (1 + mu[:, 0].abs())).unsqueeze(-1)
    rest = s.unsqueeze(-1) * v + along * mu[:, 1:]
    x = torch.cat([first.unsqueeze(-1), rest], -1)
    x = x * (1.5 - 0.5 * x.square().sum(-1, keepdim=True))  # a Newton step: the norm to an ulp
    return x.to(loc.dtype), t


@functools.cache
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


def quadrature(nodes: int = 24) -> tuple[Tensor, Tensor]:
    """Nodes and weights, float64, of Gauss and Legendre's rule on [0, 1]."""
    node, weight = _legendre(nodes)
    return torch.from_numpy(node), torch.from_numpy(weight)


def angle_derivative(t: Tensor, concentration: Tensor, complement: Tensor, dim: int) -> Tensor:
    r"""d phi / d kappa of phi = acos(1 - t) at a fixed level of its distribution function.

    .. math:: \frac{d\varphi}{d\kappa} = -\frac{1}{f(\varphi)} \int_0^\varphi (\cos - A) f
       = \frac{1}{f(\varphi)} \int_\varphi^\pi (\cos - A) f, \qquad
       f(\varphi) = \sin^{m-2}\varphi\, e^{\kappa \cos\varphi}.

    The side on which cos - A keeps its sign is integrated, by Gauss and Legendre's rule on the
    part where f / f(phi) exceeds exp(-28).

    Args:
        t: [S, rows], 1 - cos phi in [0, 2].
        concentration: [rows], kappa.
        complement: [rows], 1 - A_m(kappa).
        dim: m.

    Returns:
        float64 [S, rows].

    Source: Figurnov, Mohamed & Mnih 2018, "Implicit reparameterization gradients".
    """
    cut = 28.0
    t, kappa, complement = t.double(), concentration.double(), complement.double()
    power = dim - 2
    cosine, sine = 1 - t, (t * (2 - t)).sqrt()
    phi = 2 * torch.atan2(t.sqrt(), (2 - t).sqrt())
    cotangent = cosine / sine.clamp(min=1e-300)
    left = t < complement
    side = torch.where(left, 1.0, -1.0).to(t.dtype)
    slope = side * (power * cotangent - kappa * sine)
    bend = kappa * cosine.clamp(min=0)
    curvature = torch.where(
        left, power / sine.square().clamp(min=1e-300) + bend, power + 0.4 * bend
    )
    reach = 2 * cut / (slope + (slope.square() + 2 * cut * curvature).sqrt()).clamp(min=1e-300)
    length = torch.minimum(torch.where(left, phi, math.pi - phi), reach)
    total = torch.zeros_like(t)
    for node, weight in zip(*(q.tolist() for q in quadrature()), strict=True):
        half = length * (node / 2)
        versine, sin_y = 2 * half.sin().square(), (2 * half).sin()
        change = side * sine * sin_y - cosine * versine
        ratio = ((1 - versine) - side * cotangent * sin_y).clamp(min=1e-300)
        total += weight * (power * ratio.log() + kappa * change).exp() * (complement - t + change)
    return -side * total * length


def sample_vmf_backward(
    grad: Tensor, grad_t: Tensor | None, loc: Tensor, x: Tensor, t: Tensor, dphi: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`sample_vmf` with the random numbers held fixed.

    Args:
        grad: [S, rows, m], gradient with respect to x.
        grad_t: float64 [S, rows], gradient with respect to t, or None.
        loc: [rows, m].
        x: [S, rows, m].
        t: float64 [S, rows].
        dphi: float64 [S, rows], from :func:`angle_derivative`.

    Returns:
        Gradients with respect to loc [rows, m] (orthogonal to loc, since only its direction
        counts) and to the concentration [rows].
    """
    norm = loc.norm(dim=-1, keepdim=True)
    mu = loc / norm
    sign = torch.where(mu[:, :1] < 0, -1.0, 1.0).to(mu.dtype)
    h = 1 + mu[:, :1].abs()
    u = torch.cat([mu[:, :1] + sign, mu[:, 1:]], -1)
    # y = H x with H = I - u u^T / h; <u, y> = -<u, x>.
    ux, gu = (u * x).sum(-1, keepdim=True), (u * grad).sum(-1, keepdim=True)
    y = x - u * (ux / h)
    by_mu = ((grad * ux - y * gu) / h).sum(0)
    first = by_mu[:, :1] - (sign * gu * ux / h.square()).sum(0)
    by_mu = torch.cat([first, by_mu[:, 1:]], -1)
    by_loc = (by_mu - mu * (mu * by_mu).sum(-1, keepdim=True)) / norm

    # dx / dphi = -sin phi mu + cos phi v, and v = (x - w mu) / sin phi.
    sine = (t * (2 - t)).sqrt()
    along = ((grad * mu).sum(-1)).double()
    across = (grad * (x - mu * (1 - t).unsqueeze(-1).to(x.dtype))).sum(-1).double()
    by_phi = -sine * along + (1 - t) * across / sine.clamp(min=1e-300)
    if grad_t is not None:
        by_phi = by_phi + grad_t * sine
    return by_loc, (by_phi * dphi).sum(0).to(grad.dtype)
