"""log normaliser, A, entropy, KL and their derivatives against mpmath."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from mpmath import mp
from vmf_truth import CONCENTRATIONS, DIMENSIONS, law

from lipvae.ops.vmf_density import Moments, log_area, moment, moments

# Measured: at most 1.7e-14, but for the variance (6.4e-13) and the third cumulant (8.1e-12).
TOLERANCE = {"variance": 2e-12, "third": 2e-11}


def truth(dim: int, kappa: float) -> dict[str, mpmath.mpf]:
    """The fields of Moments from mpmath's Bessel functions, by their textbook formulas."""
    if kappa == 0:
        values = {name: mp.mpf(0) for name in Moments._fields}
        half = mp.mpf(1) / dim
        return {**values, "complement": mp.mpf(1), "mean_over_kappa": half, "variance": half}
    m, k = mp.mpf(dim), mp.mpf(kappa)
    nu = m / 2 - 1
    bessel = mp.besseli(nu, k)
    log_partition = mp.loggamma(m / 2) + nu * mp.log(2 / k) + mp.log(bessel)
    a = mp.besseli(nu + 1, k) / bessel
    variance = 1 - a * a - (m - 1) * a / k
    return {
        "log_partition": log_partition,
        "deficit": k - log_partition,
        "mean": a,
        "complement": 1 - a,
        "mean_over_kappa": a / k,
        "variance": variance,
        "third": -2 * a * variance - (m - 1) * (variance / k - a / k**2),
        "kl": k * a - log_partition,
    }


def check(dim: int, concentrations: tuple[float, ...]) -> None:
    found = moments(torch.tensor(concentrations, dtype=torch.float64), dim)
    with mp.workdps(90):
        for i, kappa in enumerate(concentrations):
            for name, expected in truth(dim, kappa).items():
                value = float(getattr(found, name)[i])
                error = abs(mp.mpf(value) - expected)
                assert error <= TOLERANCE.get(name, 1e-13) * abs(expected), (dim, kappa, name)


@pytest.mark.parametrize("dim", [2, 3, 5, 10, 43, 70])
def test_against_mpmath(dim: int) -> None:
    """Also on both sides of the seam between the expansions."""
    check(dim, (0.0, 1e-8, 1e-3, 1.0, 12.0, 19.999, 20.0, 100.0, 1e4, 1e8))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [*DIMENSIONS, 4, 20, 39, 40, 41, 42, 43, 44, 45, 100, 333])
def test_against_mpmath_over_the_grid(dim: int) -> None:
    check(dim, (*CONCENTRATIONS, 1e-12, 5.0, 15.0, 19.9, 20.0, 20.1, 25.0, 1e3, 1e5, 1e7))


@pytest.mark.parametrize("dim", [2, 5, 70, 1000, 4096])
def test_the_moments_are_those_of_the_density(dim: int) -> None:
    """Against quadrature over the angle, which knows no Bessel function."""
    for kappa in (1e-3, 1.0, 50.0, 1e6):
        found = moments(torch.tensor(kappa, dtype=torch.float64), dim)
        assert float(found.complement) == pytest.approx(law(dim, kappa).mean, rel=1e-9)
        assert float(found.variance) == pytest.approx(law(dim, kappa).variance, rel=1e-7)


@pytest.mark.parametrize("dim", [2, 3, 40, 70, 4096])
def test_the_seam_is_smooth(dim: int) -> None:
    below, above = math.nextafter(20.0, 0), 20.0
    found = moments(torch.tensor([below, above], dtype=torch.float64), dim)
    for name, value in found._asdict().items():
        assert float(value[0]) == pytest.approx(float(value[1]), rel=3e-11), name


@pytest.mark.parametrize("dim", [2, 4096])
def test_nothing_under_or_overflows(dim: int) -> None:
    kappa = torch.cat([torch.tensor([0.0]), torch.logspace(-150, 150, 601, dtype=torch.float64)])
    found = moments(kappa, dim)
    for name, value in found._asdict().items():
        assert torch.isfinite(value).all(), name
        assert (value >= 0).all() or name in ("third",), name
    assert (found.third <= 0).all()
    assert moments(torch.tensor([math.nan]), dim).kl.isnan().all()


def test_kl_does_not_cancel_near_zero() -> None:
    """KL = kappa^2 / (2m) (1 + O(kappa^2))."""
    kappa = torch.tensor([1e-3, 1e-6, 1e-9], dtype=torch.float64)
    for dim in (2, 70, 4096):
        torch.testing.assert_close(
            moments(kappa, dim).kl, kappa.square() / (2 * dim), rtol=1e-5, atol=0
        )


def test_where_peers_give_nan() -> None:
    """float32 at (m, kappa) = (70, 1), (784, 100), and float64 where scipy's ive is 0."""
    for dim, kappa in ((70, 1.0), (784, 100.0), (200, 1e-3), (2000, 100.0)):
        found = moment("kl", torch.tensor(kappa), dim)
        assert found.dtype == torch.float32
        with mp.workdps(50):
            assert float(found) == pytest.approx(float(truth(dim, kappa)["kl"]), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in Moments._fields if name != "third"])
def test_derivatives(name: str) -> None:
    """First and second; the variance and A / kappa have a first only."""
    kappa = torch.tensor([0.0, 0.3, 5.0, 19.0, 22.0, 300.0], dtype=torch.float64)
    for dim in (2, 3, 50):
        at = kappa[1:].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda k, dim=dim: moment(name, k, dim), at)
        if name not in ("variance", "mean_over_kappa"):
            assert torch.autograd.gradgradcheck(lambda k, dim=dim: moment(name, k, dim), at)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 1e4), (10, 1e8), (4096, 1e-6), (4096, 1e5)])
def test_derivatives_keep_their_digits(dim: int, kappa: float) -> None:
    """Where finite differences, and 1 - A^2 - (m-1) A / kappa, have none left."""
    at = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    with mp.workdps(90):
        expected = truth(dim, kappa)
        for name in ("log_partition", "kl"):
            (first,) = torch.autograd.grad(moment(name, at, dim), at, create_graph=True)
            (second,) = torch.autograd.grad(first, at)
            slope, bend = expected["mean"], expected["variance"]
            if name == "kl":
                slope, bend = kappa * bend, bend + kappa * expected["third"]
            assert abs(mp.mpf(float(first.detach())) - slope) <= 1e-12 * abs(slope)
            assert abs(mp.mpf(float(second)) - bend) <= 1e-11 * (abs(bend) + expected["variance"])


def test_a_third_derivative_is_refused() -> None:
    kappa = torch.tensor(2.0, requires_grad=True)
    (first,) = torch.autograd.grad(moment("kl", kappa, 5), kappa, create_graph=True)
    (second,) = torch.autograd.grad(first, kappa, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivative"):
        torch.autograd.grad(second, kappa)


def test_area() -> None:
    assert math.exp(log_area(2)) == pytest.approx(2 * math.pi)
    assert math.exp(log_area(3)) == pytest.approx(4 * math.pi)
    assert math.exp(log_area(4)) == pytest.approx(2 * math.pi**2)


def test_compiled_is_eager() -> None:
    def function(kappa: torch.Tensor) -> torch.Tensor:
        return moment("kl", kappa, 50).sum() + moment("deficit", kappa, 50).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grads = []
    for f in (function, compiled):
        kappa = torch.tensor([0.0, 3.0, 1e5], requires_grad=True)
        grads.append(torch.autograd.grad(f(kappa), kappa)[0])
    torch.testing.assert_close(*grads)
