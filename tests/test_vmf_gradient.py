"""The reparameterised gradient of von Mises-Fisher samples, and the op under torch's machinery."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from vmf_truth import CONCENTRATIONS, DIMENSIONS, law

import lipvae
from lipvae.functional import sample_vmf
from lipvae.ops import vmf
from lipvae.ops.vmf import angle_derivative
from lipvae.reference import sample_vmf_backward

STANDARD_ERRORS = 4.5


def check_kappa(dim: int, kappa: float, n: int, dtype: torch.dtype = torch.float64) -> None:
    """d E<mu, x> / d kappa is A'(kappa), the variance of <mu, x>, and d E f(x) for another f."""
    mu = torch.nn.functional.normalize(torch.randn(dim, dtype=dtype), dim=-1)
    concentration = torch.full((n,), kappa, dtype=dtype, requires_grad=True)
    x, t = vmf(mu.expand(n, dim), concentration, 1, 11)
    (by_x,) = torch.autograd.grad((x @ mu).sum(), concentration, retain_graph=True)
    (by_t,) = torch.autograd.grad(-t.sum(), concentration)
    truth = law(dim, kappa).variance
    for grad in (by_x.double(), by_t.double()):
        assert torch.isfinite(grad).all()
        error = abs(float(grad.mean()) - truth)
        assert error <= STANDARD_ERRORS * float(grad.std()) / math.sqrt(n) + 1e-9 * truth


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 70])
@pytest.mark.parametrize("kappa", [0.0, 2.0, 12.0, 1e4])
def test_gradient_in_concentration(dim: int, kappa: float) -> None:
    check_kappa(dim, kappa, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [k for k in CONCENTRATIONS if k <= 1e4])
@pytest.mark.parametrize("dim", DIMENSIONS)
def test_gradient_in_concentration_over_the_grid(dim: int, kappa: float) -> None:
    n = 400_000 if dim <= 10 else 2_000_000 // dim + 2000
    check_kappa(dim, kappa, n)
    check_kappa(dim, kappa, n, torch.float32)


@pytest.mark.parametrize(("dim", "kappa"), [(5, 2.0), (70, 10.0)])
def test_where_s_vae_pytorch_is_biased(dim: int, kappa: float) -> None:
    """A'(kappa) at two points of the posterior where the peer's gradient misses it."""
    check_kappa(dim, kappa, 40_000)
    expected = {5: 0.147, 70: 0.013}[dim]
    assert law(dim, kappa).variance == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("dim", [2, 3, 5, 10, 300])
@pytest.mark.parametrize("kappa", [0.5, 12.0, 1e4])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_derivative_of_the_quantile(dim: int, kappa: float, backend: str) -> None:
    """Implicit derivative against central differences of quantiles found by root finding."""
    level = np.array([0.02, 0.3, 0.5, 0.9, 0.999])

    def quantiles(at: float) -> np.ndarray:
        truth = law(dim, at, 20_000)
        return np.array(
            [
                brentq(
                    lambda a, p=p: float(truth.angle_cdf(a)) - p, truth.low, truth.high, xtol=1e-15
                )
                for p in level
            ]
        )

    step = 3e-4 * kappa
    difference = (quantiles(kappa + step) - quantiles(kappa - step)) / (2 * step)
    t = torch.from_numpy(2 * np.sin(quantiles(kappa) / 2) ** 2)
    concentration = torch.tensor([kappa], dtype=torch.float64)
    with lipvae.backend(backend):
        found = angle_derivative(t[:, None], concentration, dim)[:, 0]
    np.testing.assert_allclose(found.numpy(), difference, rtol=2e-5)


@pytest.mark.parametrize("dim", [2, 3, 4, 40])
def test_backends_agree_on_the_derivative(dim: int) -> None:
    kappa = torch.tensor([0, 1e-3, 1, 12, 100, 1e4, 1e8], dtype=torch.float64)
    _, t = vmf(torch.ones(7, dim, dtype=torch.float64), kappa, 300, 4)
    found = angle_derivative(t, kappa, dim)
    with lipvae.backend("reference"):
        truth = angle_derivative(t, kappa, dim)
    scale = truth.abs().mean(0)
    assert ((found - truth).abs() <= 1e-11 * scale).all()


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_gradient_in_loc(dim: int) -> None:
    """Exact for fixed random numbers, orthogonal to loc, and inverse in its norm."""
    loc = torch.randn(4, dim, dtype=torch.float64) * 3
    loc[0] = torch.eye(dim, dtype=torch.float64)[0]
    loc[1] = -loc[0]
    loc.requires_grad_()
    kappa = torch.tensor([0.0, 2.0, 30.0, 1e4], dtype=torch.float64)
    # Not across the great circle where the reflection changes side.
    assert torch.autograd.gradcheck(lambda m: vmf(m, kappa, 3, 9)[0], loc)
    x, _ = vmf(loc, kappa, 50, 9)
    (grad,) = torch.autograd.grad((x * torch.randn_like(x)).sum(), loc)
    assert (grad * loc).sum(-1).abs().max() <= 1e-12 * grad.abs().max()


@pytest.mark.parametrize("dim", [2, 3, 8, 60])
def test_gradient_in_loc_is_unbiased(dim: int) -> None:
    """d E<a, x> / d mu = A (a - mu <mu, a>)."""
    n, kappa = 20_000, 5.0
    mu = torch.nn.functional.normalize(torch.randn(dim, dtype=torch.float64), dim=-1)
    loc = mu.repeat(n, 1).requires_grad_()
    x, _ = vmf(loc, torch.full((n,), kappa, dtype=torch.float64), 1, 2)
    a = torch.randn(dim, dtype=torch.float64)
    (grad,) = torch.autograd.grad((x @ a).sum(), loc)
    truth = (1 - law(dim, kappa).mean) * (a - mu * (mu @ a))
    error = (grad.mean(0) - truth).abs()
    assert (error <= STANDARD_ERRORS * grad.std(0) / math.sqrt(n) + 1e-12).all()


def test_float32_gradients_are_close_to_float64s() -> None:
    loc = torch.randn(6, 20)
    kappa = torch.tensor([0.0, 0.1, 3.0, 50.0, 1e3, 1e4])
    grads = []
    weight = torch.randn(30, 6, 20)
    x, t = vmf(loc, kappa, 30, 1)
    for dtype in (torch.float32, torch.float64):
        dphi = angle_derivative(t, kappa.to(dtype), 20)
        grads.append(
            sample_vmf_backward(weight.to(dtype), None, loc.to(dtype), x.to(dtype), t, dphi)
        )
    for single, double in zip(*grads, strict=True):
        scale = double.abs().max(-1, keepdim=True).values if double.dim() > 1 else double.abs()
        assert ((single.double() - double).abs() <= 1e-3 * scale).all()


def test_opcheck() -> None:
    for dim in (2, 3, 7):
        loc = torch.randn(3, dim, dtype=torch.float64, requires_grad=True)
        kappa = torch.rand(3, dtype=torch.float64, requires_grad=True)
        arguments = (loc, kappa, 4, torch.tensor([5]), 2, False)
        torch.library.opcheck(torch.ops.lipvae.vmf, arguments)
    torch.library.opcheck(torch.ops.lipvae.vmf_moments, (torch.rand(3), 7))


def test_compiled_is_eager() -> None:
    seed = torch.tensor([17])

    def loss(loc: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
        x, t = vmf(torch.nn.functional.normalize(loc, dim=-1), kappa.exp(), 4, seed)
        return (x[..., 0] * t).sum() + x.pow(3).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        loc = torch.randn(3, 6, requires_grad=True)
        kappa = torch.randn(3, requires_grad=True)
        value = function(loc, kappa)
        results.append((value, *torch.autograd.grad(value, (loc, kappa))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_the_public_function_compiles() -> None:
    compiled = torch.compile(
        lambda m, k: sample_vmf(m, k, (5,)), fullgraph=True, backend="aot_eager"
    )
    loc, kappa = torch.randn(3, 6), torch.full((3,), 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = compiled(loc, kappa)
    assert x.shape == (5, 3, 6)
    assert ((x * torch.nn.functional.normalize(loc, dim=-1)).sum(-1) > 0.999).all()


def test_nothing_is_saved_without_gradients() -> None:
    loc, kappa = torch.randn(3, 6, requires_grad=True), torch.ones(3)
    assert sample_vmf(loc, kappa).requires_grad
    with torch.no_grad():
        assert not sample_vmf(loc, kappa).requires_grad
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(sample_vmf(loc, kappa).pow(2).sum(), loc, create_graph=True)
