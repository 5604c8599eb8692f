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
def depth_of(w, peak):
    """peak - |w| in float32, exact near the peak; 0 for padding makes it the peak."""
    return peak.to(tl.float32) - tl.abs(w)


@triton.jit
def _is_active(w, hi, low):
    """Membership of A at tau = hi + low, exact; NaN is no member."""
    return ((tl.abs(w) - hi) - low) > 0


@triton.jit
def two_floats(peak, delta):
    """tau = peak - delta as two floats, from delta: exact also where tau's own bits are not."""
    hi = (peak - delta).to(tl.float32)
    return hi, ((peak - hi.to(tl.float64)) - delta).to(tl.float32)


@triton.jit
def _narrow(row, depth, peak, delta, cols, CHUNK: tl.constexpr, LOOP: tl.constexpr):
    """The sum of |w| - tau over A, the active set at tau = peak - delta, and |A|, in float32."""
    reach = delta.to(tl.float32)
    if LOOP:
        excess = tl.zeros([CHUNK], tl.float32)
        active = tl.zeros([CHUNK], tl.float32)
        for start in range(0, cols, CHUNK):
            column = start + tl.arange(0, CHUNK)
            w = tl.load(row + column, mask=column < cols, other=0.0).to(tl.float32)
            chunk = tl.maximum(reach - depth_of(w, peak), 0.0)
            excess += chunk
            active += (chunk > 0).to(tl.float32)
    else:
        excess = tl.maximum(reach - depth, 0.0)
        active = (excess > 0).to(tl.float32)
    # One reduction of pairs: half the barriers of two.
    total, count = tl.split(tl.sum(tl.join(excess, active), 0))
    return total.to(tl.float64), count.to(tl.float64)


@triton.jit
def _members(row, peak, delta, cols, CHUNK: tl.constexpr):
    """|A|, exact, of a row in memory."""
    hi, low = two_floats(peak, delta)
    active = tl.zeros([CHUNK], tl.float32)
    for start in range(0, cols, CHUNK):
        column = start + tl.arange(0, CHUNK)
        w = tl.load(row + column, mask=column < cols, other=0.0).to(tl.float32)
        active += _is_active(w, hi, low).to(tl.float32)
    return tl.sum(active, 0).to(tl.float64)


@triton.jit
def _wide(row, peak, delta, cols, CHUNK: tl.constexpr):
    """The sum of peak - |w| over A in float64, and |A|, of a row in memory."""
    hi, low = two_floats(peak, delta)
    depth = tl.zeros([CHUNK], tl.float64)
    active = tl.zeros([CHUNK], tl.float32)
    for start in range(0, cols, CHUNK):
        column = start + tl.arange(0, CHUNK)
        w = tl.load(row + column, mask=column < cols, other=0.0).to(tl.float32)
        member = _is_active(w, hi, low)
        depth += peak - tl.where(member, tl.abs(w), peak.to(tl.float32)).to(tl.float64)
        active += member.to(tl.float32)
    return tl.sum(depth, 0), tl.sum(active, 0).to(tl.float64)


@triton.jit
def over(x, count):
    """x / count in float64 for a count up to 2^24, without the call that float64 division is."""
    inverse = (1.0 / tl.cast(count, tl.float32)).to(tl.float64)
    wide = tl.cast(count, tl.float64)
    inverse *= 2.0 - wide * inverse
    inverse *= 2.0 - wide * inverse
    return x * inverse


@triton.jit
def _step(delta, excess, count, floor, peak):
    """Newton's step, kept between r / |A| at least and tau = 0, where the padding is inactive."""
    return tl.minimum(tl.maximum(delta + over(excess, tl.maximum(count, 1.0)), floor), peak)


@triton.jit
def find_active(
    row, depth, peak, delta, radius, outside, cols, CHUNK: tl.constexpr, LOOP: tl.constexpr
):
    """Newton's iteration on delta from any start, with sums in float32."""
    floor = over(radius, cols)
    total, before = _narrow(row, depth, peak, delta, cols, CHUNK, LOOP)
    delta = _step(delta, radius - total, before, floor, peak)
    total, count = _narrow(row, depth, peak, delta, cols, CHUNK, LOOP)
    # A first step from inside the set enlarges it. From here on the set only shrinks.
    before = tl.where(count > before, tl.cast(cols, tl.float64) + 1, before)
    while (count < before) & outside:
        delta = _step(delta, radius - total, count, floor, peak)
        before = count
        total, count = _narrow(row, depth, peak, delta, cols, CHUNK, LOOP)
    return _step(delta, radius - total, count, floor, peak)


@triton.jit
def settle(row, peak, delta, radius, outside, cols, CHUNK: tl.constexpr):
    """The same from near the root, with sums in float64.

    A step takes the sum of the active set alone, so that no bit depends on where the iteration
    began, and it is the last if the set at its end has as many members.
    """
    floor = over(radius, cols)
    total, before = _wide(row, peak, delta, cols, CHUNK)
    delta = _step(0.0, radius + total, before, floor, peak)
    count = _members(row, peak, delta, cols, CHUNK)
    before = tl.where(count > before, tl.cast(cols, tl.float64) + 1, before)
    while (count < before) & outside:
        total, before = _wide(row, peak, delta, cols, CHUNK)
        delta = _step(0.0, radius + total, before, floor, peak)
        count = _members(row, peak, delta, cols, CHUNK)
    return delta
