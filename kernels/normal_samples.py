"""Samples of normal posteriors with log p(z) - log q(z | x), in one launch and in float64.

A program makes a few samples of one image. The sums run over tiles of a width that depends on m
alone, so a sample's bits depend neither on K nor on B.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import (
    DTYPES,
    OPTIONS,
    cdiv,
    check_companion,
    check_doubles,
    next_power_of_2,
    on_device,
)

_WIDEST = 256


@triton.jit
def draw_normal(
    loc_ptr,
    log_variance_ptr,
    noise_ptr,
    z_ptr,
    ratio_ptr,
    samples,
    batch,
    dim,
    SAMPLES: tl.constexpr,
    DIMS: tl.constexpr,
):
    """z [samples, batch, dim] and ratio [samples, batch] of `SAMPLES` samples of one image."""
    tiles = tl.cdiv(samples, SAMPLES)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    sample = tl.program_id(0) % tiles * SAMPLES + tl.arange(0, SAMPLES)
    row = sample.to(tl.int64) * batch + image
    sums = tl.zeros([SAMPLES, DIMS], tl.float64)
    for start in range(0, dim, DIMS):
        at = start + tl.arange(0, DIMS)
        inside = at < dim
        both = (sample < samples)[:, None] & inside[None, :]
        loc = tl.load(loc_ptr + image * dim + at, mask=inside, other=0.0)
        log_variance = tl.load(log_variance_ptr + image * dim + at, mask=inside, other=0.0)
        noise_at = sample.to(tl.int64)[:, None] * dim + at[None, :]
        noise = tl.load(noise_ptr + noise_at, mask=both, other=0.0)
        z = loc[None, :] + tl.exp(0.5 * log_variance)[None, :] * noise
        sums += noise * noise - z * z + log_variance[None, :]
        # By way of float32: the interpreter stores a float64 as a bfloat16 wrongly.
        tl.store(z_ptr + row[:, None] * dim + at[None, :], z.to(tl.float32), mask=both)
    tl.store(ratio_ptr + row, 0.5 * tl.sum(sums, 1), mask=sample < samples)


def tile_config(dim: int) -> dict[str, int]:
    """Tile of at most 1024 numbers."""
    width = min(_WIDEST, max(16, next_power_of_2(dim)))
    return {"SAMPLES": min(16, 1024 // width), "DIMS": width, "num_warps": 4}


def normal_samples(
    loc: Tensor, log_variance: Tensor, noise: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """z = loc + exp(log_variance / 2) noise and log p(z) - log q(z), p standard normal.

    Args:
        loc: float64 [B, m].
        log_variance: float64 [B, m].
        noise: float64 [K, m].
        dtype: of the samples: float32, float16 or bfloat16.

    Returns:
        z [K, B, m] and float64 [K, B].
    """
    loc = check_doubles("loc", loc, dim=2)
    noise = check_doubles("noise", noise, dim=2)
    (b, m), k = loc.shape, len(noise)
    log_variance = check_companion("log_variance", log_variance, loc, (b, m), torch.float64)
    noise = check_companion("noise", noise, loc, (k, m), torch.float64)
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    z = loc.new_empty(k, b, m, dtype=dtype)
    log_ratio = loc.new_empty(k, b)
    if k * b:
        tile = tile_config(m)
        grid = (b * cdiv(k, tile["SAMPLES"]),)
        with on_device(loc):
            draw_normal[grid](
                loc, log_variance, noise, z, log_ratio, k, b, m, **tile, **OPTIONS
            )  # fmt: skip
    return z, log_ratio
