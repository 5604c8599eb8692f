"""Samples of normal posteriors, with the ratio of densities in their importance weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lipvae import reference
from lipvae._backend import choose, cpp_module, kernel_module
from lipvae._workers import kernel_threads
from lipvae.ops._common import dtype_code


def normal_samples(
    loc: Tensor, log_variance: Tensor, noise: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Samples z of q(z | x) and log p(z) - log q(z | x), p standard normal, equation (5).

    Both are computed in float64 and z is rounded at the end: the densities are those of the samples
    before rounding. For scoring; there is no gradient.

    Args:
        loc: float64 [B, m], means of q(z | x).
        log_variance: float64 [B, m].
        noise: float64 [K, m], standard normal, the same for every x.
        dtype: of the samples.

    Returns:
        z [K, B, m] and the logarithm of the ratio, float64 [K, B]. On a CPU the samples of one x
        follow one another in memory.
    """
    backend = choose("normal_samples", loc.new_empty(0, dtype=dtype))
    if backend == "cpp":
        (k, m), b = noise.shape, len(loc)
        z = loc.new_empty(b, k, m, dtype=dtype)
        log_ratio = loc.new_empty(b, k)
        loc, log_variance, noise = loc.contiguous(), log_variance.contiguous(), noise.contiguous()
        cpp_module().normal_samples(
            loc.data_ptr(),
            log_variance.data_ptr(),
            noise.data_ptr(),
            z.data_ptr(),
            log_ratio.data_ptr(),
            b,
            k,
            m,
            dtype_code(z),
            kernel_threads(),
        )
        return z.transpose(0, 1), log_ratio.t()
    if backend == "triton":
        return kernel_module("normal_samples").normal_samples(loc, log_variance, noise, dtype)
    z, log_ratio = reference.normal_samples(loc, log_variance, noise)
    return z.to(dtype), log_ratio
