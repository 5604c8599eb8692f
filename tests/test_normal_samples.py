"""Samples of normal posteriors and their ratio of densities, against scipy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_as_accurate
from scipy import stats

import lipvae
from lipvae import ops, reference

BACKENDS = ["reference", "cpp"]
DTYPES = [torch.float32, torch.float64]


def problem(k: int, b: int, m: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loc, log_variance = 3 * torch.randn(b, m).double(), 2 * torch.randn(b, m).double()
    return loc, log_variance, torch.randn(k, m, dtype=torch.float64)


def test_the_reference_is_scipys() -> None:
    loc, log_variance, noise = problem(5, 3, 4)
    z, ratio = reference.normal_samples(loc, log_variance, noise)
    scale = (0.5 * log_variance).exp().numpy()
    np.testing.assert_allclose(z, loc.numpy() + scale * noise.numpy()[:, None], rtol=1e-15)
    prior = stats.norm.logpdf(z.numpy()).sum(-1)
    posterior = stats.norm.logpdf(z.numpy(), loc.numpy(), scale).sum(-1)
    np.testing.assert_allclose(ratio, prior - posterior, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 7), (5, 3, 8), (130, 4, 10), (2, 3, 500)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_truth(backend: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    loc, log_variance, noise = problem(*shape)
    with lipvae.backend(backend):
        z, ratio = ops.normal_samples(loc, log_variance, noise, dtype)
    truth, truth_ratio = reference.normal_samples(loc, log_variance, noise)
    assert z.dtype == dtype
    assert ratio.dtype == torch.float64
    assert_as_accurate("normal_samples", z, truth)
    assert_as_accurate("normal_samples", ratio, truth_ratio)


def test_nothing_is_lost_where_the_posterior_is_narrow() -> None:
    """(z - loc) / scale has no digits left beside a mean of 1e8; the noise has them all."""
    loc, noise = torch.full((1, 1), 1e8).double(), torch.tensor([[1.25]]).double()
    log_variance = torch.full((1, 1), -50.0).double()
    with lipvae.backend("cpp"):
        z, ratio = ops.normal_samples(loc, log_variance, noise, torch.float64)
    assert float(z) == 1e8
    assert float(ratio) == pytest.approx(0.5 * (1.25**2 - 1e16 - 50), rel=1e-15)


def test_an_input_is_sampled_the_same_whatever_stands_beside_it() -> None:
    loc, log_variance, noise = problem(9, 5, 13)
    with lipvae.backend("cpp"):
        z, ratio = ops.normal_samples(loc, log_variance, noise, torch.float32)
        for i in range(5):
            one = slice(i, i + 1)
            alone, alone_ratio = ops.normal_samples(
                loc[one], log_variance[one], noise, torch.float32
            )
            assert torch.equal(alone, z[:, one])
            assert torch.equal(alone_ratio, ratio[:, one])
        early, early_ratio = ops.normal_samples(loc, log_variance, noise[:4], torch.float32)
        assert torch.equal(early, z[:4])
        assert torch.equal(early_ratio, ratio[:4])


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_sample(backend: str, shape: tuple[int, int, int]) -> None:
    with lipvae.backend(backend):
        z, ratio = ops.normal_samples(*problem(*shape), torch.float32)
    assert z.shape == shape
    assert ratio.shape == shape[:2]
