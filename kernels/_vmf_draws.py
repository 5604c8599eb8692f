"""Random numbers and elementary functions of the von Mises-Fisher kernels, equation (4).

The streams, and what is made of their words, are those of ``lipvae.reference.vmf``. Circular
functions are polynomials on an exactly reduced argument: the library's own keep a slow path for
large arguments, which takes local memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lipvae.reference.vmf import ATTEMPTS, STREAM_T, STREAM_TANGENT

_ATTEMPTS = tl.constexpr(ATTEMPTS)
_STREAM_T = tl.constexpr(STREAM_T)
_STREAM_TANGENT = tl.constexpr(STREAM_TANGENT)


@triton.jit
def words(seed, block, stream, index):
    """Philox4x32-10 of the counters (block, stream, index, index >> 32)."""
    low = (index & 0xFFFFFFFF).to(tl.uint32)
    high = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, zero + block.to(tl.uint32), zero + stream, low, high)


@triton.jit
def stream_t_words(seed, index):
    """Block 0 of the stream of t."""
    return words(seed, tl.full((), 0, tl.int32), _STREAM_T, index)


@triton.jit
def uniform52(low, high):
    bits = (high.to(tl.uint64) << 20) | (low.to(tl.uint64) >> 12)
    return (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16


@triton.jit
def uniform32(word):
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def sin_cos(quarters):
    """Sine and cosine of a number of quarter turns, float64; no slow path for large arguments."""
    k = tl.floor(quarters + 0.5)
    a = (quarters - k) * 1.5707963267948966
    z = a * a
    s = 1.0 / 355687428096000 * z - 1.0 / 1307674368000
    s = ((s * z + 1.0 / 6227020800) * z - 1.0 / 39916800) * z + 1.0 / 362880
    s = a + a * z * (((s * z - 1.0 / 5040) * z + 1.0 / 120) * z - 1.0 / 6)
    c = (1.0 / 20922789888000 * z - 1.0 / 87178291200) * z + 1.0 / 479001600
    c = ((c * z - 1.0 / 3628800) * z + 1.0 / 40320) * z - 1.0 / 720
    c = ((c * z + 1.0 / 24) * z - 0.5) * z + 1.0
    quarter = k.to(tl.int64)
    swap = (quarter & 1) != 0
    sine = tl.where(swap, c, s)
    cosine = tl.where(swap, s, c)
    return (
        tl.where((quarter & 2) != 0, -sine, sine),
        tl.where(((quarter + 1) & 2) != 0, -cosine, cosine),
    )


@triton.jit
def expm1(x):
    """exp(x) - 1 by Kahan's correction of the rounded exponential; x <= 0."""
    x = tl.maximum(x, -700.0)
    e = tl.exp(x)
    near = e == 1.0
    return tl.where(near, x, (e - 1.0) * (x / tl.log(tl.where(near, 2.0, e))))


@triton.jit
def beta(w0, w1, w2, w3, dim, CIRCLE: tl.constexpr):
    """1 + X and 1 - X of the symmetric Beta variable X, and the uniform number of the test."""
    if CIRCLE:
        sine, cosine = sin_cos(2.0 * uniform52(w0, w1))
        plus = 2.0 * cosine * cosine
        minus = 2.0 * sine * sine
        u = uniform52(w2, w3)
    else:
        log_rest = tl.log(uniform52(w0, w1)) * (2.0 / (dim - 2).to(tl.float64))
        sine, cosine = sin_cos(4.0 * uniform32(w2))
        radius_squared = -expm1(log_rest)
        x = tl.sqrt(radius_squared) * cosine
        rest = tl.exp(log_rest) + radius_squared * sine * sine
        large = 1.0 + tl.abs(x)
        small = rest / large
        plus = tl.where(x >= 0, large, small)
        minus = tl.where(x >= 0, small, large)
        u = uniform32(w3)
    return plus, minus, u


@triton.jit
def wood(seed, index, kappa, dim, valid, CIRCLE: tl.constexpr):
    """t by rejection, and the first word of the accepted attempt."""
    ratio = 2.0 * kappa / (dim - 1).to(tl.float64)
    b = 1.0 / (ratio + tl.sqrt(ratio * ratio + 1.0))
    x0 = (1.0 - b) / (1.0 + b)
    t0 = 2.0 * b / (1.0 + b)
    t = kappa * 0.0
    word = (index & 0).to(tl.uint32)
    left = valid
    attempt = tl.full((), 0, tl.int32)
    while (tl.max(left.to(tl.int32), 0) > 0) & (attempt < _ATTEMPTS):
        w0, w1, w2, w3 = words(seed, attempt, _STREAM_T, index)
        plus, minus, u = beta(w0, w1, w2, w3, dim, CIRCLE)
        y = x0 * (plus - minus) * 0.5
        rest = t0 + x0 * minus
        excess = tl.log(u) + (dim - 1).to(tl.float64) * (y / rest + tl.log(rest))
        t = tl.where(left, t0 * plus / rest, t)
        word = tl.where(left, w0, word)
        left = left & (excess > 0)
        attempt += 1
    return t, word


@triton.jit
def sphere(kappa, v):
    """t for m = 3: -log(1 - V (1 - exp(-2 kappa))) / kappa."""
    some = tl.where(kappa == 0, 1.0, kappa)
    z = -v * expm1(-2.0 * some)
    rest = 1.0 - z
    near = rest == 1.0
    log_rest = tl.where(near, -z, tl.log(rest) * (z / tl.where(near, 1.0, 1.0 - rest)))
    return tl.where(kappa == 0, 2.0 * v, -log_rest / some)


@triton.jit
def box_muller(radius, turn):
    """r cos and r sin, float32, from two words."""
    i = radius >> 1
    u = (i.to(tl.float32) + 0.5) * 4.656612873077393e-10
    v = ((0x7FFFFFFF - i).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 1 - u
    near = v * (1.0 + v * (0.5 + v * (1.0 / 3 + v * (0.25 + v * 0.2))))
    r = tl.sqrt(2.0 * tl.where(v < 0.015625, near, -tl.log(u)))
    quarter = (turn + 0x20000000) >> 30
    a = (turn - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32)
    a = a * 1.4629180792671596e-09  # pi / 2^31
    z = a * a
    s = a + a * z * (((z * (1.0 / 362880) - 1.0 / 5040) * z + 1.0 / 120) * z - 1.0 / 6)
    c = (((z * (1.0 / 40320) - 1.0 / 720) * z + 1.0 / 24) * z - 0.5) * z + 1.0
    swap = (quarter & 1) != 0
    sine = tl.where(swap, c, s)
    cosine = tl.where(swap, s, c)
    return (
        r * tl.where(((quarter + 1) & 2) != 0, -cosine, cosine),
        r * tl.where((quarter & 2) != 0, -sine, sine),
    )


@triton.jit
def tangent(seed, index, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr):
    """float32 [SAMPLES, COLUMNS] normal numbers."""
    block = tl.arange(0, COLUMNS // 4)[None, :]
    index = index[:, None] + 0 * block
    w0, w1, w2, w3 = words(seed, block, _STREAM_TANGENT, index)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    pairs = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(pairs, [SAMPLES, COLUMNS])


@triton.jit
def wide_tangent(seed, index, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr):
    """float64 [SAMPLES, COLUMNS] normal numbers."""
    block = tl.arange(0, COLUMNS // 2)[None, :]
    index = index[:, None] + 0 * block
    w0, w1, w2, w3 = words(seed, block, _STREAM_TANGENT, index)
    r = tl.sqrt(-2.0 * tl.log(uniform52(w0, w1)))
    sine, cosine = sin_cos(4.0 * uniform52(w2, w3))
    return tl.reshape(tl.join(r * cosine, r * sine), [SAMPLES, COLUMNS])


@triton.jit
def asin_small(x):
    """asin x for x in [0, 1/sqrt 2], by two half-angle steps and its series."""
    for _ in tl.static_range(2):
        x = x / tl.sqrt((tl.sqrt(1.0 - x * x) + 1.0) * 2.0)
    z = x * x
    p = z * 0.0
    for i in tl.static_range(11):
        # n = 22 - 2 i, spelt out: a name would hold the number in float32.
        p = (p + 1.0) * z * ((21.0 - 2 * i) * (21.0 - 2 * i) / ((22.0 - 2 * i) * (23.0 - 2 * i)))
    return 4.0 * (x + x * p)
