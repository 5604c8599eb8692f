"""Statistics of importance weights over samples that stream by: one launch a chunk of samples.

A program holds all samples of a chunk for a few images. Means and squared deviations merge by Chan,
Golub & LeVeque (1979); sums of weights are kept relative to the largest weight so far. An image's
bits depend on its own samples, and on how they are cut into chunks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import (
    OPTIONS,
    cdiv,
    check_companion,
    check_operand,
    next_power_of_2,
    on_device,
)

# Samples of a chunk, and images of a program.
CHUNK = 128
IMAGES = 8
STATE = tl.constexpr(7)


@triton.jit
def _moments(x, inside, count):
    """Mean over the first dimension, and the sum of squared deviations from it."""
    mean = tl.sum(tl.where(inside, x, 0.0), 0) / count
    deviation = tl.where(inside, x - mean[None, :], 0.0)
    return mean, tl.sum(deviation * deviation, 0)


@triton.jit
def _merged(mean, squares, other_mean, other_squares, before, count):
    """The moments of `before` values and of `count` more."""
    delta = other_mean - mean
    total = before + count
    squares += other_squares + delta * delta * (before * count / total)
    return mean + delta * (count / total), squares


# Whether the batch is 1, or a multiple of 16, would change how loads are laid out over threads, and
# so the order of the sums.
@triton.jit(do_not_specialize=["batch"])
def add_samples(
    log_likelihood_ptr,
    ratio_ptr,
    state_ptr,
    statistics_ptr,
    samples,
    batch,
    before,
    FIRST: tl.constexpr,
    SAMPLES: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """state [batch, STATE] and statistics [STATE, batch] with log_likelihood [samples, batch]."""
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    sample = tl.arange(0, SAMPLES)
    there = image < batch
    inside = (sample < samples)[:, None]
    at = sample.to(tl.int64)[:, None] * batch + image[None, :]
    # Images beyond the last one are computed from zeros and not stored.
    ll = tl.load(log_likelihood_ptr + at, mask=inside & there[None, :], other=0.0).to(tl.float64)
    log_weight = ll + tl.load(ratio_ptr + at, mask=inside & there[None, :], other=0.0)
    count = tl.cast(samples, tl.float64)
    total = count
    state = state_ptr + image.to(tl.int64) * STATE
    if not FIRST:
        # Read before the first reduction, which all threads wait for, and so before a write.
        n = tl.cast(before, tl.float64)
        total += n
        old_ll_mean = tl.load(state, mask=there, other=0.0)
        old_ll_squares = tl.load(state + 1, mask=there, other=0.0)
        old_mean = tl.load(state + 2, mask=there, other=0.0)
        old_squares = tl.load(state + 3, mask=there, other=0.0)
        old_peak = tl.load(state + 4, mask=there, other=0.0)
        old_weights = tl.load(state + 5, mask=there, other=0.0)
        old_square_weights = tl.load(state + 6, mask=there, other=0.0)

    ll_mean, ll_squares = _moments(ll, inside, count)
    mean, squares = _moments(log_weight, inside, count)
    log_weight = tl.where(inside, log_weight, float("-inf"))
    peak = tl.max(log_weight, 0)
    # Finite, so that weights of zero, or of infinity, don't become infinity minus infinity.
    peak = tl.minimum(tl.maximum(peak, -1.7976931348623157e308), 1.7976931348623157e308)
    if not FIRST:
        peak = tl.maximum(peak, old_peak)
    weight = tl.exp(log_weight - peak[None, :])
    weights, square_weights = tl.sum(weight, 0), tl.sum(weight * weight, 0)
    if not FIRST:
        scale = tl.exp(old_peak - peak)
        weights += old_weights * scale
        square_weights += old_square_weights * scale * scale
        ll_mean, ll_squares = _merged(old_ll_mean, old_ll_squares, ll_mean, ll_squares, n, count)
        mean, squares = _merged(old_mean, old_squares, mean, squares, n, count)
    tl.store(state, ll_mean, mask=there)
    tl.store(state + 1, ll_squares, mask=there)
    tl.store(state + 2, mean, mask=there)
    tl.store(state + 3, squares, mask=there)
    tl.store(state + 4, peak, mask=there)
    tl.store(state + 5, weights, mask=there)
    tl.store(state + 6, square_weights, mask=there)

    out = statistics_ptr + image
    spread = tl.where(total > 1.0, 1.0 / tl.maximum(total - 1.0, 1.0), float("nan"))
    tl.store(out, ll_mean, mask=there)
    tl.store(out + batch, tl.sqrt(ll_squares * spread), mask=there)
    tl.store(out + 2 * batch, tl.sqrt(squares * spread), mask=there)
    tl.store(out + 3 * batch, peak + tl.log(weights / total), mask=there)
    tl.store(out + 4 * batch, mean, mask=there)
    tl.store(out + 5 * batch, ll_mean - mean, mask=there)
    tl.store(out + 6 * batch, weights * weights / square_weights, mask=there)


def tile_config(samples: int) -> dict[str, int]:
    """Tile of all samples of a chunk by some images."""
    return {
        "SAMPLES": max(16, next_power_of_2(samples)),
        "IMAGES": IMAGES,
        "num_warps": 4,
    }


def importance_statistics(
    log_likelihood: Tensor, log_ratio: Tensor, state: Tensor, statistics: Tensor, before: int
) -> None:
    """Adds samples to the state, and writes the statistics of all samples so far.

    Args:
        log_likelihood: [K', B], float32, float16 or bfloat16.
        log_ratio: float64 [K', B], log p(z_k) - log q(z_k | x).
        state: float64 [B, 7] of the `before` samples, changed in place.
        statistics: float64 [7, B], written.
        before: the samples added before; 0 ignores what `state` holds.
    """
    log_likelihood = check_operand("log_likelihood", log_likelihood, dim=2)
    k, b = log_likelihood.shape
    log_ratio = check_companion("log_ratio", log_ratio, log_likelihood, (k, b), torch.float64)
    check_companion("state", state, log_likelihood, (b, STATE.value), torch.float64)
    check_companion("statistics", statistics, log_likelihood, (STATE.value, b), torch.float64)
    if not (state.is_contiguous() and statistics.is_contiguous()):
        raise ValueError("state and statistics must be contiguous: they are written in place")
    if not b:
        return
    with on_device(log_likelihood):
        for start in range(0, k, CHUNK):
            part = slice(start, start + CHUNK)
            count = min(CHUNK, k - start)
            add_samples[(cdiv(b, IMAGES),)](
                log_likelihood[part],
                log_ratio[part],
                state,
                statistics,
                count,
                b,
                before + start,
                FIRST=before + start == 0,
                **tile_config(count),
                **OPTIONS,
            )
