"""importance_statistics in Triton's interpreter, against the definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import assert_as_accurate

import lipvae
from lipvae import reference
from lipvae.kernels.importance_statistics import STATE, importance_statistics
from lipvae.statistics import ImportanceAccumulator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def statistics(ll: torch.Tensor, ratio: torch.Tensor, chunk: int) -> torch.Tensor:
    """[7, B], of samples that come in chunks."""
    state = torch.full((ll.shape[1], STATE.value), math.nan, dtype=torch.float64)
    out = torch.empty(STATE.value, ll.shape[1], dtype=torch.float64)
    for start in range(0, len(ll), chunk):
        part = slice(start, start + chunk)
        importance_statistics(ll[part], ratio[part], state, out, start)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "b", "chunk"), [(2, 1, 1), (20, 3, 7), (130, 9, 130), (300, 2, 300)])
def test_against_truth(k: int, b: int, chunk: int, dtype: torch.dtype) -> None:
    # Of like size, since the divergence is a difference of two means and has their rounding.
    ll = (5 * torch.randn(k, b) - 10).to(dtype)
    ratio = 2 * torch.randn(k, b, dtype=torch.float64) + 3
    truth = reference.importance_statistics(ll, ratio, torch.zeros_like(ratio))
    for got, want in zip(statistics(ll, ratio, chunk), truth.values(), strict=True):
        assert_as_accurate("importance_statistics", got, want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities
def test_extremes() -> None:
    ll = torch.tensor([[-1e30, -math.inf, -math.inf, math.nan], [-1e30, -2.0, -math.inf, 0.0]])
    found = statistics(ll, torch.zeros(2, 4, dtype=torch.float64), 1)
    evidence, ess = found[3].tolist(), found[6].tolist()
    assert evidence[:3] == [float(ll[0, 0]), pytest.approx(-2 - math.log(2)), -math.inf]
    assert ess[:2] == [2.0, 1.0]
    assert math.isnan(ess[2])
    assert math.isnan(evidence[3])
    assert math.isnan(ess[3])


def test_one_sample_has_no_spread() -> None:
    found = statistics(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.float64), 1)
    assert found[1:3].isnan().all()
    assert found[3].tolist() == [1.0, 1.0]


def test_bits_do_not_depend_on_the_batch() -> None:
    ll, ratio = torch.randn(20, 11), torch.randn(20, 11, dtype=torch.float64)
    whole = statistics(ll, ratio, 20)
    assert torch.equal(statistics(ll[:, 8:9], ratio[:, 8:9], 20), whole[:, 8:9])


def test_the_accumulator_takes_it() -> None:
    ll, ratio = torch.randn(6, 3), torch.randn(6, 3, dtype=torch.float64)
    accumulator = ImportanceAccumulator()
    with lipvae.backend("triton"):
        accumulator.update(ll[:4], ratio[:4])
        accumulator.update(ll[4:], ratio[4:])
    found = accumulator.statistics()
    truth = reference.importance_statistics(ll, ratio, torch.zeros_like(ratio))
    for name, want in truth.items():
        assert_as_accurate("importance_statistics", getattr(found, name), want)


def test_bad_arguments() -> None:
    ll, ratio = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)
    state, out = torch.zeros(3, 7, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"log_ratio must be torch\.float64"):
        importance_statistics(ll, ratio.float(), state, out, 0)
    with pytest.raises(ValueError, match="state must have shape"):
        importance_statistics(ll, ratio, state[:2], out, 0)
    with pytest.raises(ValueError, match="contiguous"):
        importance_statistics(ll, ratio, out.t(), out, 0)
