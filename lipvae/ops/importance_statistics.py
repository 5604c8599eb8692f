"""Statistics of importance weights over samples that stream by, equation (6)."""

from __future__ import annotations

from torch import Tensor

from lipvae._backend import choose, cpp_module, kernel_module
from lipvae._workers import kernel_threads
from lipvae.ops._common import compiling, dtype_code, needs_grad, transforming

# Numbers an image of the state and of the statistics.
STATE = 7


def has_kernel(log_likelihood: Tensor, log_ratio: Tensor) -> bool:
    """Whether :func:`add_samples` takes such tensors here."""
    if transforming() or compiling() or needs_grad(log_likelihood, log_ratio):
        return False
    return choose("importance_statistics", log_likelihood) != "reference"


def add_samples(
    log_likelihood: Tensor, log_ratio: Tensor, state: Tensor, statistics: Tensor, before: int
) -> None:
    """Adds samples to the state, and writes the statistics of all samples so far.

    An image's statistics depend on its own samples only.

    Args:
        log_likelihood: [K', B], log p(x | z_k), K' >= 1.
        log_ratio: float64 [K', B], log p(z_k) - log q(z_k | x).
        state: float64 [B, STATE], contiguous, of `before` samples.
        statistics: float64 [STATE, B], contiguous, in the order of
            :class:`lipvae.statistics.ImportanceStatistics`.
        before: the samples added before; 0 ignores what `state` holds.
    """
    if choose("importance_statistics", log_likelihood) == "triton":
        kernel_module("importance_statistics").importance_statistics(
            log_likelihood, log_ratio, state, statistics, before
        )
        return
    by_image, ratio = log_likelihood.t().contiguous(), log_ratio.t().contiguous()
    cpp_module().importance_statistics(
        by_image.data_ptr(),
        ratio.data_ptr(),
        state.data_ptr(),
        statistics.data_ptr(),
        *by_image.shape,
        before,
        dtype_code(by_image),
        kernel_threads(),
    )
