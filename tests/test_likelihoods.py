"""Likelihoods: densities that normalise, means and samples that agree with them."""

from __future__ import annotations

import pytest
import torch

from lipvae import likelihoods, reference
from lipvae.likelihoods import LIKELIHOODS, Bernoulli, ContinuousBernoulli

DISCRETE = ("discretized_logistic", "categorical256")
LEVELS = torch.arange(256, dtype=torch.float64) / 255


def parameters(name, d=5, rows=4, scale=1.0):
    likelihood = likelihoods.get(name)
    p = torch.randn(rows, likelihood.parameters_per_dim, d, dtype=torch.float64) * scale
    if name in ("gaussian", "discretized_logistic"):
        p[:, 0] = torch.rand(rows, d, dtype=torch.float64)
        p[:, 1] = torch.rand(rows, d, dtype=torch.float64) * 3 - 4
    return p.flatten(1)


def single(name, parameters_, x):
    """log p of each value of x [N] in one dimension with parameters [P]."""
    rows = parameters_.expand(len(x), -1).contiguous()
    return likelihoods.get(name).log_prob(rows, x[:, None].contiguous())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_names_and_counts_are_those_of_the_ops(name):
    likelihood = likelihoods.get(name)
    assert likelihood.name == name
    assert likelihood.parameters_per_dim == reference.FAMILIES[name].parameters_per_dim
    assert set(LIKELIHOODS) == set(reference.FAMILIES)
    assert repr(likelihood) == f"{type(likelihood).__name__}()"


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_with_and_without_samples(name):
    likelihood = likelihoods.get(name)
    p, x = parameters(name, rows=6), torch.rand(3, 5, dtype=torch.float64)
    got = likelihood.log_prob(p.view(2, 3, -1), x)
    torch.testing.assert_close(got, reference.importance(p.view(2, 3, -1), x, name))
    torch.testing.assert_close(likelihood.log_prob(p[:3], x), got[0])


@pytest.mark.parametrize("name", ["continuous_bernoulli", "gaussian", *DISCRETE, "bernoulli"])
def test_normalises_and_the_mean_is_the_mean(name):
    for row in parameters(name, d=1, rows=6):
        if name == "bernoulli":
            x, weight = torch.tensor([0.0, 1.0], dtype=torch.float64), 1.0
        elif name in DISCRETE:
            x, weight = LEVELS, 1.0
        elif name == "gaussian":
            x = torch.linspace(-20, 21, 400_001, dtype=torch.float64)
            weight = float(x[1] - x[0])
        else:
            x = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
            weight = 1e-5
        probability = single(name, row, x).exp() * weight
        assert float(probability.sum()) == pytest.approx(1.0, abs=1e-6)
        mean = likelihoods.get(name).mean(row)
        assert float(mean) == pytest.approx(float((probability * x).sum()), abs=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_follow_the_distribution(name):
    n, d = 20_000, 4
    p = parameters(name, d=d, rows=1)
    generator = torch.Generator().manual_seed(1)
    likelihood = likelihoods.get(name)
    x = likelihood.sample(p.expand(n, -1), generator)
    assert x.shape == (n, d)
    standard_error = x.std(0) / n**0.5
    assert bool(((x.mean(0) - likelihood.mean(p)[0]).abs() < 5 * standard_error + 1e-9).all())
    if name in DISCRETE:
        torch.testing.assert_close((x * 255).round() / 255, x, rtol=0, atol=1e-12)
        want = torch.stack(
            [single(name, p.view(-1, d)[:, j], LEVELS).exp() for j in range(d)]
        ).cumsum(1)
        got = torch.stack([(x[:, j, None] <= LEVELS + 1e-9).double().mean(0) for j in range(d)])
        assert float((got - want).abs().max()) < 2.0 / n**0.5  # Kolmogorov
    again = likelihood.sample(p.expand(n, -1), torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


@pytest.mark.parametrize("logit", [0.0, 1e-12, -1e-6, 1e-3, 0.0999, 0.1001, -5.0, 60.0, -800.0])
def test_continuous_bernoulli_mean_and_samples_at_any_logit(logit):
    from mpmath import exp, mp, mpf

    mp.dps = 60
    value = mpf(logit)
    want = 0.5 if logit == 0 else float(1 / (1 - exp(-value)) - 1 / value)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        p = torch.full((50_000,), logit, dtype=dtype)
        mean = ContinuousBernoulli().mean(p[:1])
        assert float(mean) == pytest.approx(want, abs=tolerance)
        x = ContinuousBernoulli().sample(p)
        assert bool(((x >= 0) & (x <= 1)).all())
        assert float(x.mean()) == pytest.approx(want, abs=5 * float(x.std()) / 223 + 1e-9)


def test_layout_is_parameter_major():
    gaussian = likelihoods.get("gaussian")
    p = torch.tensor([0.1, 0.2, 0.3, -30.0, -30.0, -30.0])
    torch.testing.assert_close(gaussian.mean(p), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(gaussian.sample(p), torch.tensor([0.1, 0.2, 0.3]))
    categorical = likelihoods.get("categorical256")
    p = torch.zeros(256, 2)
    p[51, 0] = p[204, 1] = 1000.0
    torch.testing.assert_close(categorical.mean(p.flatten()), torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(categorical.sample(p.flatten()), torch.tensor([0.2, 0.8]))


def test_errors():
    with pytest.raises(ValueError, match=r"likelihood must be one of bernoulli, .* got 'normal'"):
        likelihoods.get("normal")
    with pytest.raises(ValueError, match="likelihood must be one of"):
        likelihoods.get(None)
    with pytest.raises(ValueError, match="divisible by 2"):
        likelihoods.get("gaussian").mean(torch.zeros(3))
    with pytest.raises(TypeError, match=r"parameters must be a torch\.Tensor"):
        Bernoulli().log_prob([0.0], torch.zeros(1, 1))
    with pytest.raises(ValueError, match="parameters must be"):
        Bernoulli().log_prob(torch.zeros(2, 3), torch.zeros(2, 2))
