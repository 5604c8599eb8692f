"""The von Mises-Fisher kernels in Triton's interpreter, on the streams of the reference."""

from __future__ import annotations

import pytest
import torch

import lipvae
from lipvae import reference
from lipvae.kernels import vmf as kernels
from lipvae.ops.vmf import angle_derivative, vmf

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# Of x on the unit sphere: a few roundings of normals in float32, and one to the dtype.
BOUND = {dtype: max(5e-7, torch.finfo(dtype).eps / 2) for dtype in DTYPES[:-1]}
BOUND[torch.float64] = 1e-14
KAPPA = [0.0, 1e-3, 0.8, 12.0, 3e3]


def problem(rows: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    loc = torch.nn.functional.normalize(torch.randn(rows, dim), dim=-1)
    loc[0] = torch.eye(dim)[0]
    loc[-1] = -torch.eye(dim)[0]
    kappa = torch.tensor(KAPPA).repeat(rows)[:rows]
    return loc.to(dtype), kappa.to(dtype)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 3, 4, 5, 18, 40])
def test_the_samples_are_the_reference_s(dim: int, dtype: torch.dtype, shared: bool) -> None:
    loc, kappa = problem(5, dim, dtype)
    seed = torch.tensor([-(2**40) + 7])
    start = 2**32 - 3  # the index goes on through the 32-bit edge
    x, t = kernels.vmf_forward(loc, kappa, 4, seed, start, shared)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    truth, truth_t = reference.sample_vmf(loc.to(wide), kappa.to(wide), 4, seed, start, shared)
    assert x.dtype == dtype
    assert torch.allclose(t, truth_t, rtol=1e-12, atol=0)
    assert (x - truth).abs().max() <= BOUND[dtype]


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_a_sample_depends_on_its_index_alone(dim: int) -> None:
    loc, kappa = problem(5, dim, torch.float32)
    seed = torch.tensor([3])
    x, t = kernels.vmf_forward(loc, kappa, 40, seed, 0, True)  # more than one block
    for row in (0, 3):
        only = slice(row, row + 1)
        one, one_t = kernels.vmf_forward(loc[only], kappa[only], 2, seed, 38, True)
        assert torch.equal(one, x[38:, only])
        assert torch.equal(one_t, t[38:, only])


@pytest.mark.parametrize("dim", [2, 3, 10, 300])
def test_the_derivative_of_the_angle(dim: int) -> None:
    kappa = torch.tensor([1e-3, 0.8, 12.0, 3e3], dtype=torch.float64)
    loc = torch.eye(dim, dtype=torch.float64)[:1].expand(4, -1)
    _, t = reference.sample_vmf(loc, kappa, 6, torch.tensor([5]), 0, False)
    with lipvae.backend("reference"):
        truth = angle_derivative(t, kappa, dim)
    with lipvae.backend("cpp"):
        other = angle_derivative(t, kappa, dim)
    complement = lipvae.ops.vmf_density.moments(kappa, dim).complement
    got = kernels.vmf_angle(t, kappa, complement, dim)
    scale = truth.abs()
    assert ((got - truth).abs() <= 1e-13 * scale).all()
    assert ((got - other).abs() <= 1e-13 * scale).all()


def test_float64_reaches_the_kernels_too() -> None:
    """Scoring samples in float64, so a GPU must not leave it to torch."""
    loc, kappa = problem(3, 6, torch.float64)
    with lipvae.backend("triton"):
        x, t = vmf(loc, kappa, 2, torch.tensor([5]))
    kernel_x, kernel_t = kernels.vmf_forward(loc, kappa, 2, torch.tensor([5]), 0, False)
    assert torch.equal(x, kernel_x)
    assert torch.equal(t, kernel_t)


def test_the_op_reaches_the_kernels() -> None:
    loc, kappa = (t.requires_grad_() for t in problem(3, 6, torch.float32))
    grad = torch.randn(2, 3, 6)

    def run() -> tuple[torch.Tensor, ...]:
        x, t = vmf(loc, kappa + 1, 2, seed=11)
        loss = (x * grad).sum() + t.sum()
        return (x.detach(), t.detach(), *torch.autograd.grad(loss, (loc, kappa)))

    with lipvae.backend("triton"):
        got = run()
    with lipvae.backend("reference"):
        truth = run()
    for mine, true in zip(got, truth, strict=True):
        assert torch.allclose(mine, true, rtol=1e-4, atol=1e-5)


def test_tiles_hold_every_dimension() -> None:
    for dim in (4, 5, 6, 129, 1000, kernels.MAX_DIM):
        config = kernels.tangent_config(dim)
        assert config["COLUMNS"] >= dim - 1
        assert config["COLUMNS"] % 4 == 0
        assert config["SAMPLES"] * config["COLUMNS"] <= max(1024, config["COLUMNS"])
        assert 4 <= config["num_warps"] <= 16


def test_empty_and_strided() -> None:
    seed = torch.tensor([1])
    loc, kappa = problem(3, 8, torch.float32)
    x, t = kernels.vmf_forward(loc, kappa, 0, seed, 0, False)
    assert x.shape == (0, 3, 8)
    assert kernels.vmf_angle(t, kappa.double(), kappa.double(), 8).shape == (0, 3)
    x, _ = kernels.vmf_forward(loc[:0], kappa[:0], 2, seed, 0, False)
    assert x.shape == (2, 0, 8)
    strided = loc.t().contiguous().t()
    mine, _ = kernels.vmf_forward(strided, kappa, 2, seed, 0, False)
    plain, _ = kernels.vmf_forward(loc, kappa, 2, seed, 0, False)
    assert torch.equal(mine, plain)


def test_errors_name_the_argument() -> None:
    loc, kappa = problem(3, 8, torch.float32)
    seed = torch.tensor([1])
    with pytest.raises(ValueError, match="loc"):
        kernels.vmf_forward(loc[0], kappa, 1, seed, 0, False)
    with pytest.raises(ValueError, match="loc must have 2 to 8192 columns, got 1"):
        kernels.vmf_forward(loc[:, :1], kappa, 1, seed, 0, False)
    with pytest.raises(TypeError, match="loc"):
        kernels.vmf_forward(loc.int(), kappa, 1, seed, 0, False)
    with pytest.raises(TypeError, match=r"concentration must be torch\.float64"):
        kernels.vmf_forward(loc.double(), kappa, 1, seed, 0, False)
    with pytest.raises(ValueError, match="concentration"):
        kernels.vmf_forward(loc, kappa[1:], 1, seed, 0, False)
    with pytest.raises(TypeError, match="seed"):
        kernels.vmf_forward(loc, kappa, 1, seed.int(), 0, False)
    t = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match="concentration"):
        kernels.vmf_angle(t, kappa, kappa, 8)
    with pytest.raises(ValueError, match="complement"):
        kernels.vmf_angle(t, kappa.double(), kappa[1:].double(), 8)
