"""VonMisesFisher and HypersphericalUniform against quadrature; the classes of compat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import gammaln
from torch.distributions import kl_divergence

from lipvae.compat import hyperspherical_vae as compat
from lipvae.distributions import HypersphericalUniform, VonMisesFisher

CASES = [(2, 0.3), (2, 7.0), (3, 2.5), (5, 40.0), (10, 0.0), (10, 12.0)]


def along(m: int, kappa: float, power: int) -> float:
    """Integral of t^power exp(kappa (t - 1)) over the sphere, t the coordinate along the mode."""
    area = (
        np.log(2) + (m - 1) / 2 * np.log(np.pi) - gammaln((m - 1) / 2)
    )  # of the circles of latitude

    def integrand(angle: float) -> float:
        t = np.cos(angle)
        return t**power * np.exp(kappa * (t - 1) + area) * np.sin(angle) ** (m - 2)

    return quad(integrand, 0, np.pi, epsabs=1e-12, epsrel=1e-11, limit=200)[0]


def moments(m: int, kappa: float) -> tuple[float, float, float]:
    """log normalizer, E[t] and E[t^2]."""
    total = along(m, kappa, 0)
    return -np.log(total) - kappa, along(m, kappa, 1) / total, along(m, kappa, 2) / total


def direction(m: int, seed: int = 0) -> torch.Tensor:
    z = torch.randn(m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return z / z.norm()


@pytest.mark.parametrize(("m", "kappa"), CASES)
def test_moments(m: int, kappa: float) -> None:
    loc = direction(m)
    q = VonMisesFisher(loc, torch.tensor(kappa, dtype=torch.float64))
    log_c, first, second = moments(m, kappa)
    outer = torch.outer(loc, loc)
    covariance = (second - first**2) * outer + (1 - second) / (m - 1) * (torch.eye(m) - outer)
    close = {"rtol": 1e-7, "atol": 1e-9}
    np.testing.assert_allclose(q.log_normalizer, log_c, **close)
    np.testing.assert_allclose(q.mean_resultant_length, first, **close)
    np.testing.assert_allclose(q.mean, first * loc, **close)
    np.testing.assert_allclose(q.covariance_matrix, covariance, **close)
    np.testing.assert_allclose(q.variance, covariance.diagonal(), **close)
    np.testing.assert_allclose(q.entropy(), -(log_c + kappa * first), **close)
    x = direction(m, 1)
    np.testing.assert_allclose(q.log_prob(x), log_c + kappa * float(loc @ x), **close)


@pytest.mark.parametrize(("m", "kappa"), CASES)
def test_divergences(m: int, kappa: float) -> None:
    p = VonMisesFisher(direction(m), torch.tensor(kappa, dtype=torch.float64))
    q = VonMisesFisher(direction(m, 2), torch.tensor(3.0, dtype=torch.float64))
    uniform = HypersphericalUniform(m, dtype=torch.float64)
    (log_p, first, _), (log_q, _, _), (log_u, _, _) = (moments(m, k) for k in (kappa, 3.0, 0.0))
    cosine = float(p.loc @ q.loc)
    close = {"rtol": 1e-7, "atol": 1e-9}
    expected = log_p + kappa * first - log_q - 3.0 * first * cosine
    np.testing.assert_allclose(kl_divergence(p, q), expected, **close)
    np.testing.assert_allclose(kl_divergence(p, uniform), log_p + kappa * first - log_u, **close)
    np.testing.assert_allclose(kl_divergence(uniform, p), log_u - log_p, **close)
    assert kl_divergence(uniform, uniform) == 0
    with pytest.raises(ValueError, match="on one sphere"):
        kl_divergence(p, HypersphericalUniform(m + 1))


@pytest.mark.parametrize("m", [2, 3, 10])
def test_the_uniform_distribution(m: int) -> None:
    uniform = HypersphericalUniform(m, (4,), dtype=torch.float64)
    log_u = moments(m, 0.0)[0]
    np.testing.assert_allclose(uniform.entropy(), np.full(4, -log_u), rtol=1e-9)
    x = uniform.sample((20000,))
    assert x.shape == (20000, 4, m)
    np.testing.assert_allclose(uniform.log_prob(x[0]), np.full(4, log_u), rtol=1e-9)
    flat = x.flatten(0, 1)
    np.testing.assert_allclose(flat.mean(0), uniform.mean[0], atol=0.02)
    np.testing.assert_allclose(flat.T.cov(), uniform.covariance_matrix[0], atol=0.02)
    np.testing.assert_allclose(uniform.variance[0], np.full(m, 1 / m))


def test_samples_have_the_moments() -> None:
    q = VonMisesFisher(direction(4), torch.tensor(5.0, dtype=torch.float64))
    x = q.sample((100000,))
    np.testing.assert_allclose(x.mean(0), q.mean, atol=0.01)
    np.testing.assert_allclose(x.T.cov(), q.covariance_matrix, atol=0.01)


def test_expansion() -> None:
    q = VonMisesFisher(direction(3), torch.tensor(2.0, dtype=torch.float64)).expand((2, 5))
    assert q.sample((7,)).shape == (7, 2, 5, 3)
    assert q.log_prob(direction(3)).shape == q.entropy().shape == (2, 5)
    uniform = HypersphericalUniform(3).expand((2, 5))
    assert uniform.sample((7,)).shape == (7, 2, 5, 3)
    assert kl_divergence(q, uniform).shape == (2, 5)


def test_values_off_the_sphere_are_refused() -> None:
    q = VonMisesFisher(direction(3), torch.tensor(2.0, dtype=torch.float64), validate_args=True)
    uniform = HypersphericalUniform(3, dtype=torch.float64, validate_args=True)
    for distribution in (q, uniform):
        with pytest.raises(ValueError, match="within the support"):
            distribution.log_prob(direction(3) * 1.01)


def test_the_interface_of_s_vae_pytorch() -> None:
    loc, scale = direction(4).expand(6, 4), torch.full((6, 1), 9.0, dtype=torch.float64)
    theirs, ours = compat.VonMisesFisher(loc, scale), VonMisesFisher(loc, scale.squeeze(-1))
    prior = compat.HypersphericalUniform(3)  # the sphere's own dimension
    x = theirs.rsample(5)
    assert x.shape == (5, 6, 4)
    torch.testing.assert_close(theirs.log_prob(x), ours.log_prob(x))
    torch.testing.assert_close(theirs.entropy(), ours.entropy())
    assert torch.equal(theirs.scale, scale)
    assert theirs.expand((2, 6)).rsample(3).shape == (3, 2, 6, 4)
    torch.testing.assert_close(prior.entropy(), HypersphericalUniform(4).entropy())
    assert prior.rsample(5).shape == (5, 4)
    expanded = prior.expand((2,))
    assert expanded.rsample(5).shape == (5, 2, 4)
    assert (expanded.dim, expanded.device) == (3, prior.device)
    expected = kl_divergence(ours, HypersphericalUniform(4, dtype=torch.float64))
    torch.testing.assert_close(kl_divergence(theirs, prior), expected)
