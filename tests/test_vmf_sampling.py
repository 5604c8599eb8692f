"""Samples of the von Mises-Fisher distribution against their exact law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from vmf_truth import CONCENTRATIONS, DIMENSIONS, law

import lipvae
from lipvae._backend import cpp_module
from lipvae.functional import sample_vmf
from lipvae.ops import vmf

# Every assertion below is about one fixed stream; the thresholds are those of a test that would
# fail one grid in ten thousand, were the seed drawn anew.
STANDARD_ERRORS = 4.5
P_VALUE = 1e-6

DIRECTIONS = ("first axis", "minus first axis", "near first axis", "random")


def direction(kind: str, dim: int) -> torch.Tensor:
    """float64 [m], of norm 1."""
    if kind == "random":
        mu = torch.randn(dim, dtype=torch.float64)
    else:
        mu = torch.zeros(dim, dtype=torch.float64)
        mu[0] = -1.0 if kind == "minus first axis" else 1.0
        if kind == "near first axis":
            mu[1:] = 1e-9 * torch.randn(dim - 1, dtype=torch.float64)
    return mu / mu.norm()


def check_norm(x: torch.Tensor) -> None:
    """|x| = 1 to 2 ulp, summed in extended precision."""
    wide = x.numpy().astype(np.longdouble)
    norm = np.sqrt((wide * wide).sum(-1))
    assert np.abs(norm - 1).max() <= 2 * torch.finfo(x.dtype).eps


def check_tangent(x: torch.Tensor, mu: torch.Tensor, t: torch.Tensor) -> None:
    """The tangent's direction is uniform and does not depend on t."""
    n, dim = x.shape
    across = x.double() - (1 - t)[:, None] * mu
    across -= (across @ mu)[:, None] * mu
    v = across / across.norm(dim=-1, keepdim=True)
    # Uniform on S^(m-2): n (m-1) |mean|^2 is chi-squared of m - 1 up to 1/n.
    square = n * (dim - 1) * float(v.mean(0).square().sum())
    assert stats.chi2.sf(square, dim - 1) > P_VALUE
    half = (dim - 2) / 2
    probe = torch.randn(dim, dtype=torch.float64)
    probe -= (probe @ mu) * mu
    inner = (v @ (probe / probe.norm())).numpy()
    if dim > 2:  # one coordinate is a symmetric Beta variable
        assert stats.kstest((1 + inner) / 2, stats.beta(half, half).cdf).pvalue > P_VALUE
    assert stats.spearmanr(inner, t.numpy()).pvalue > P_VALUE


def check(dim: int, kappa: float, kind: str, dtype: torch.dtype, n: int, seed: int = 0) -> None:
    mu = direction(kind, dim).to(dtype)
    x, t = vmf(mu[None], torch.tensor([kappa], dtype=dtype), n, seed)
    x, t = x[:, 0], t[:, 0]
    truth = law(dim, kappa)
    assert torch.isfinite(x).all()
    check_norm(x)
    error = abs(float(t.mean()) - truth.mean)
    assert error <= STANDARD_ERRORS * math.sqrt(truth.variance / n)
    assert stats.kstest(t.numpy(), truth.cdf).pvalue > P_VALUE
    # t is what the samples themselves say, to the rounding of their entries.
    wide = mu.numpy().astype(np.longdouble)
    wide /= np.sqrt((wide * wide).sum())
    said = ((x.numpy() - wide) ** 2).sum(-1) / 2
    slack = 4 * torch.finfo(dtype).eps
    assert (np.abs(said - t.numpy()) <= slack * (np.sqrt(said) + slack)).all()
    if dtype == torch.float64:
        check_tangent(x, mu / mu.norm(), t)


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 10, 70])
@pytest.mark.parametrize("kappa", [0.0, 1.0, 12.0, 1e4, 1e8])
def test_the_law_of_samples(dim: int, kappa: float) -> None:
    for kind in DIRECTIONS:
        check(dim, kappa, kind, torch.float64, 4000)
    check(dim, kappa, "random", torch.float32, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("dim", DIMENSIONS)
def test_the_law_of_samples_over_the_grid(dim: int, kind: str, dtype: torch.dtype) -> None:
    n = 100_000 if dim <= 10 else 2_000_000 // dim + 1000
    for i, kappa in enumerate(CONCENTRATIONS):
        check(dim, kappa, kind, dtype, n, seed=1000 + i)


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 11, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_draw_what_the_reference_draws(dim: int, dtype: torch.dtype) -> None:
    loc = torch.randn(9, dim, dtype=dtype)
    kappa = torch.tensor([0, 1e-3, 0.5, 3, 10, 12, 100, 1e5, 1e8], dtype=dtype)
    for shared in (False, True):
        x, t = vmf(loc, kappa, 40, 2**63 + 11, 2**32 - 7, shared)
        with lipvae.backend("reference"):
            truth, truth_t = vmf(loc, kappa, 40, 2**63 + 11, 2**32 - 7, shared)
        torch.testing.assert_close(t, truth_t, rtol=1e-12, atol=0)
        # Near the antipode the tangent's length feels the rounding of t most.
        sine = (t * (2 - t)).sqrt().unsqueeze(-1)
        slack = 16 * torch.finfo(dtype).eps + 4e-15 / sine
        assert ((x - truth).abs() <= slack).all()


def test_instruction_sets_agree() -> None:
    extension = cpp_module()
    chosen = extension.isa()
    drawn = []
    try:
        for isa in extension.available_isas():
            extension.set_isa(isa)
            for dim in (2, 3, 5, 37):
                loc = torch.ones(3, dim, dtype=torch.float64)
                kappa = torch.tensor([0.0, 7.0, 1e6], dtype=torch.float64)
                drawn.append(vmf(loc, kappa, 100, 5))
    finally:
        extension.set_isa(chosen)
    for i, (x, t) in enumerate(drawn):
        torch.testing.assert_close(x, drawn[i % 4][0], rtol=0, atol=1e-14)
        torch.testing.assert_close(t, drawn[i % 4][1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 5, 100])
def test_threads_change_nothing(dim: int) -> None:
    loc, kappa = torch.randn(7, dim), torch.full((7,), 3.0)
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            drawn.append(vmf(loc, kappa, 30_000 // dim, 5))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, drawn[0][0]) and torch.equal(t, drawn[0][1]) for x, t in drawn)


@pytest.mark.parametrize("dim", [2, 3, 6, 40])
def test_a_sample_depends_on_its_index_alone(dim: int) -> None:
    loc, kappa = torch.randn(5, dim), torch.tensor([0.0, 1.0, 10.0, 1e3, 1e7])
    x, _ = vmf(loc, kappa, 12, 3)
    tail, _ = vmf(loc, kappa, 9, 3, start=3 * 5)
    assert torch.equal(x[3:], tail)
    shared, _ = vmf(loc, kappa, 12, 3, shared=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(shared[:, order], vmf(loc[order], kappa[order], 12, 3, shared=True)[0])
    alone, _ = vmf(loc[2:3], kappa[2:3], 5, 3, start=7, shared=True)
    assert torch.equal(shared[7:, 2:3], alone)


def test_seeds() -> None:
    loc, kappa = torch.eye(4)[0], torch.tensor(2.0)
    torch.manual_seed(5)
    first = sample_vmf(loc, kappa, (3, 2))
    second = sample_vmf(loc, kappa, (3, 2))
    torch.manual_seed(5)
    assert torch.equal(first, sample_vmf(loc, kappa, (3, 2)))
    assert not torch.equal(first, second)
    generators = [torch.Generator().manual_seed(9) for _ in range(2)]
    drawn = [sample_vmf(loc, kappa, (100,), g) for g in generators]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], sample_vmf(loc, kappa, (100,), generators[0]))


def test_shapes_and_dtypes() -> None:
    loc, kappa = torch.randn(3, 1, 5, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert sample_vmf(loc, kappa).shape == (3, 2, 5)
    assert sample_vmf(loc, kappa, (4, 6)).shape == (4, 6, 3, 2, 5)
    assert sample_vmf(loc, kappa, (0,)).shape == (0, 3, 2, 5)
    assert sample_vmf(loc[:0], kappa, (4,)).shape == (4, 0, 2, 5)
    assert sample_vmf(loc, kappa).dtype == torch.float64
    transposed = torch.randn(5, 3).T
    x, _ = vmf(transposed, torch.ones(3), 2, 1)
    assert torch.equal(x, vmf(transposed.contiguous(), torch.ones(3), 2, 1)[0])


def test_beyond_the_kernels_the_reference_draws() -> None:
    x = sample_vmf(torch.eye(1, 9000)[0], torch.tensor(100.0), (2,))
    check_norm(x)


def test_extremes_neither_hang_nor_spread() -> None:
    loc = torch.eye(4)[:1].expand(5, 4)
    for dtype in (torch.float32, torch.float64):
        kappa = torch.tensor([math.nan, 1.0, 1e30, math.inf, 0.0], dtype=dtype)
        for dim in (2, 3, 4):
            x, t = vmf(loc[:, :dim].to(dtype), kappa, 50, 1)
            assert x[:, 0].isnan().all()
            assert x[:, 1:].isfinite().all()
            assert (t[:, 2:4] < 1e-25).all()


@pytest.mark.parametrize(
    ("loc", "kappa", "error", "message"),
    [
        ([1.0, 0.0], 1.0, TypeError, "loc must be a torch.Tensor, got"),
        (torch.ones(1), torch.ones(()), ValueError, r"at least 2 entries.*\(1,\)"),
        (torch.ones(2, dtype=torch.int64), torch.ones(()), TypeError, "floating point"),
        (torch.ones(2), torch.ones((), dtype=torch.float64), ValueError, "concentration.*float64"),
        (torch.ones(3, 2), torch.ones(2), ValueError, r"concentration must broadcast.*\(2,\)"),
        (
            torch.ones(2),
            torch.tensor(-0.5),
            ValueError,
            "concentration must be at least 0, got -0.5",
        ),
        (torch.ones(2), torch.tensor(math.nan), ValueError, "concentration must be finite"),
        (torch.ones(2), torch.tensor(math.inf), ValueError, "concentration must be finite"),
        (torch.tensor([1.0, math.nan]), torch.ones(()), ValueError, "loc must be finite"),
        (torch.zeros(2), torch.ones(()), ValueError, "row of zeros"),
    ],
)
def test_bad_input(loc: object, kappa: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample_vmf(loc, kappa)  # type: ignore[arg-type]


def test_generator_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got int"):
        sample_vmf(torch.ones(2), torch.ones(()), generator=3)  # type: ignore[arg-type]


def test_streams_are_those_of_the_package() -> None:
    """lipvae.noise's generator, written apart, gives the reference's words."""
    from lipvae import noise
    from lipvae.reference.vmf import philox4x32

    index = torch.tensor([0, 5, 2**32 + 3])
    seed = torch.tensor([-(2**62) + 12345])
    words = torch.stack(philox4x32(torch.tensor([7]), 99, index, seed), -1)
    key = int(seed) & (2**64 - 1)
    for i, row in zip(index.tolist(), words, strict=True):
        expected = noise.philox4x32([7, 99, i & 0xFFFFFFFF, i >> 32], [key & 0xFFFFFFFF, key >> 32])
        assert row.tolist() == expected.tolist()
