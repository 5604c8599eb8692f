"""Fixtures, and the one table of tolerances."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

# A kernel's largest error against float64 truth, relative to the scale of the truth, may exceed
# the same-dtype reference's own error by this much. Units: the dtype's epsilon.
TOLERANCE_ULPS = {
    "l1_ball": 4,
    "group_sort": 0,
    "lipschitz_linear": 16,
    "importance": 16,
    "importance_linear": 32,
    "normal_samples": 16,
    "importance_statistics": 64,
    "vmf": 16,
}


def tolerance(op: str, dtype: torch.dtype) -> float:
    """The slack of `op` in `dtype`, relative to the scale of the truth."""
    return TOLERANCE_ULPS[op] * torch.finfo(dtype).eps


def assert_as_accurate(
    op: str, got: torch.Tensor, truth: torch.Tensor, same_dtype: torch.Tensor | None = None
) -> None:
    """Judges `got` against float64 `truth`, allowing the same-dtype reference's own error."""
    assert truth.dtype == torch.float64
    assert got.shape == truth.shape
    if not truth.numel():
        return
    assert torch.isfinite(got).all() == torch.isfinite(truth).all()
    scale = truth.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    error = (got.double() - truth).abs().max() / scale
    allowed = tolerance(op, got.dtype)
    if same_dtype is not None:
        allowed += float((same_dtype.double() - truth).abs().max() / scale)
    assert error <= allowed, f"{op}: relative error {error:.3e}, allowed {allowed:.3e}"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (for libraries that draw from the global generator)
    # torch.compile, once imported by whichever test, switches these checks off.
    torch.distributions.Distribution.set_default_validate_args(True)


@pytest.fixture(autouse=True, scope="session")
def _no_requested_backend() -> None:
    os.environ.pop("LIPVAE_BACKEND", None)
