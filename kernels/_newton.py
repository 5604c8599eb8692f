"""Newton's iteration on the threshold of a row, equation (1).

The threshold of a row solves ``sum_i max(|w_i| - tau, 0) = r``. The left side is convex, falling
and piecewise linear in tau, so Newton's iteration (each step recomputes tau from the active set
A = {|w_i| > tau}; Michelot 1986) reaches a side of the root from which it is monotone after one
step, whatever the start, and ends when the active set stops shrinking: at most one step a column.

The kernels iterate on delta = max|w| - tau. Where r is far below max|w|, tau in float32 has no
bits left for the row sum; delta keeps its own relative precision there, since max|w| - |w_i| is
exact for every entry near the maximum. Steps with sums in float32 find the active set, steps with
sums in float64 settle it and fix delta.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def soft_threshold(w, hi, lo):
    """sign(w) max(|w| - tau, 0) with tau = hi + lo in two floats; NaN stays NaN.

    Near the threshold |w| - hi is exact, so the result is rounded once relative to itself.
    """
    excess = (tl.abs(w) - hi) - lo
    kept = tl.where(excess <= 0, 0.0, excess)
    return tl.where(w < 0, -kept, kept)


@triton.jit
def split_threshold(tau):
    """float64 tau -> two floats with tau = hi + lo."""
    hi = tau.to(tl.float32)
    return hi, (tau - hi.to(tl.float64)).to(tl.float32)


@triton.jit
def _excess(magnitude, peak, hi, low, WIDE: tl.constexpr):
    """|w| - tau where positive, or max|w| - |w| there if `WIDE`, and membership of A."""
    excess = (magnitude - hi) - low.to(tl.float32)
    active = excess > 0
    if WIDE:
        # Widening only what is active keeps the conversion inside the loop: hoisted out of it, it
        # would hold two more registers an element.
        kept = tl.where(active, magnitude, peak.to(tl.float32))
        excess = peak - kept.to(tl.float64)
    else:
        excess = tl.maximum(excess, 0.0)
    return excess, active.to(tl.float32)


@triton.jit
def _active(
    row,
    magnitude,
    peak,
    delta,
    cols,
    CHUNK: tl.constexpr,
    LOOP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The sum over A, the active set at tau = peak - delta, and |A|; from memory if `LOOP`.

    It is that of |w| - tau or, if `WIDE`, of peak - |w|.
    """
    hi = (peak - delta).to(tl.float32)
    low = (peak - hi.to(tl.float64)) - delta
    if LOOP:
        excess = tl.zeros([CHUNK], tl.float64 if WIDE else tl.float32)
        active = tl.zeros([CHUNK], tl.float32)
        for start in range(0, cols, CHUNK):
            column = start + tl.arange(0, CHUNK)
            w = tl.load(row + column, mask=column < cols, other=0.0).to(tl.float32)
            chunk, members = _excess(tl.abs(w), peak, hi, low, WIDE)
            excess += chunk
            active += members
    else:
        excess, active = _excess(magnitude, peak, hi, low, WIDE)
    if WIDE:
        count = tl.sum(active, 0).to(tl.float64)
        total = tl.sum(excess, 0)
    else:
        # One reduction of pairs: half the barriers of two.
        narrow_total, narrow_count = tl.split(tl.sum(tl.join(excess, active), 0))
        total = narrow_total.to(tl.float64)
        count = narrow_count.to(tl.float64)
    return total, count


@triton.jit
def over(x, count):
    """x / count in float64 for a count up to 2^24, without the call that float64 division is."""
    inverse = (1.0 / tl.cast(count, tl.float32)).to(tl.float64)
    wide = tl.cast(count, tl.float64)
    inverse *= 2.0 - wide * inverse
    inverse *= 2.0 - wide * inverse
    return x * inverse


@triton.jit
def _step(delta, total, count, radius, floor, peak, WIDE: tl.constexpr):
    """Newton's step, kept between r / |A| at least and tau = 0, where the padding is inactive."""
    if WIDE:  # of the active set alone, so that no bit depends on where the iteration began
        delta = over(total + radius, tl.maximum(count, 1.0))
    else:
        delta -= over(total - radius, tl.maximum(count, 1.0))
    return tl.minimum(tl.maximum(delta, floor), peak)


@triton.jit
def newton(
    row,
    magnitude,
    peak,
    delta,
    radius,
    outside,
    cols,
    CHUNK: tl.constexpr,
    LOOP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Newton's iteration on delta from any start, with sums in float32 or, if `WIDE`, float64."""
    floor = over(radius, cols)
    total, before = _active(row, magnitude, peak, delta, cols, CHUNK, LOOP, WIDE)
    delta = _step(delta, total, before, radius, floor, peak, WIDE)
    total, count = _active(row, magnitude, peak, delta, cols, CHUNK, LOOP, WIDE)
    # A first step from inside the set enlarges it. From here on the set only shrinks.
    before = tl.where(count > before, tl.cast(cols, tl.float64) + 1, before)
    while (count < before) & outside:
        delta = _step(delta, total, count, radius, floor, peak, WIDE)
        before = count
        total, count = _active(row, magnitude, peak, delta, cols, CHUNK, LOOP, WIDE)
    return _step(delta, total, count, radius, floor, peak, WIDE)
