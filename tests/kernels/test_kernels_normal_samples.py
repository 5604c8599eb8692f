"""normal_samples in Triton's interpreter, against float64 truth."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_as_accurate

import lipvae
from lipvae import ops, reference
from lipvae.kernels.normal_samples import normal_samples

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def problem(k: int, b: int, m: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loc, log_variance = 3 * torch.randn(b, m).double(), torch.randn(b, m).double()
    return loc, log_variance, torch.randn(k, m, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 2, 10), (3, 3, 300)])
def test_against_truth(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    loc, log_variance, noise = problem(*shape)
    z, ratio = normal_samples(loc, log_variance, noise, dtype)
    truth, truth_ratio = reference.normal_samples(loc, log_variance, noise)
    assert z.dtype == dtype
    assert_as_accurate("normal_samples", z, truth)
    assert_as_accurate("normal_samples", ratio, truth_ratio)


def test_bits_depend_neither_on_k_nor_on_b() -> None:
    loc, log_variance, noise = problem(20, 3, 40)
    z, ratio = normal_samples(loc, log_variance, noise, torch.float32)
    some = normal_samples(loc[1:2], log_variance[1:2], noise[:5], torch.float32)
    assert torch.equal(some[0], z[:5, 1:2])
    assert torch.equal(some[1], ratio[:5, 1:2])


def test_the_op_takes_it() -> None:
    loc, log_variance, noise = problem(3, 2, 4)
    with lipvae.backend("triton"):
        found = ops.normal_samples(loc, log_variance, noise, torch.float32)
    for one, two in zip(
        found, normal_samples(loc, log_variance, noise, torch.float32), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
def test_nothing_to_sample(shape: tuple[int, int, int]) -> None:
    z, ratio = normal_samples(*problem(*shape), torch.float32)
    assert z.shape == shape
    assert ratio.shape == shape[:2]


def test_bad_arguments() -> None:
    loc, log_variance, noise = problem(2, 3, 4)
    with pytest.raises(TypeError, match="loc must be float64"):
        normal_samples(loc.float(), log_variance, noise, torch.float32)
    with pytest.raises(ValueError, match="log_variance must have shape"):
        normal_samples(loc, log_variance[:1], noise, torch.float32)
    with pytest.raises(ValueError, match="noise must have shape"):
        normal_samples(loc, log_variance, noise[:, :2], torch.float32)
    with pytest.raises(TypeError, match="dtype must be float32"):
        normal_samples(loc, log_variance, noise, torch.float64)
