"""The hyperspherical VAE: its bound against quadrature, its streams, files, scores, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

import lipvae
from lipvae import HypersphericalVAE, ops
from lipvae.calibration import Calibration
from lipvae.distributions import HypersphericalUniform, VonMisesFisher
from lipvae.models import VonMisesFisherPosterior
from lipvae.models.posterior import Streams
from lipvae.scores import SCORES


def small(**arguments) -> HypersphericalVAE:
    defaults = {"input_shape": (1, 8, 8), "latent_dim": 3, "architecture": "fc", "hidden": (16, 8)}
    return HypersphericalVAE(**(defaults | arguments))


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("architecture", "shape"), [("fc", (2, 3, 1)), ("conv", (1, 28, 28)), ("conv", (3, 9, 8))]
)
def test_shapes_and_gradients(architecture, shape):
    model = HypersphericalVAE(shape, 4, architecture)
    x = torch.rand(2, *shape)
    posterior = model.encode(x)
    assert posterior.loc.shape == (2, 4)
    assert posterior.concentration.shape == (2,)
    torch.testing.assert_close(posterior.loc.norm(dim=1), torch.ones(2))
    assert bool((posterior.concentration >= 1).all())
    z = posterior.rsample(model.draw_noise(3, 2))
    assert z.shape == (3, 2, 4)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(3, 2))
    elbo = model.elbo(x, num_samples=3)
    assert elbo.shape == (2,)
    elbo.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name
    assert model.sample(5).shape == (5, *shape)


def test_the_concentration_is_one_plus_m_times_what_the_encoder_says():
    # With equal excess, 1 / concentration falls as the dimension: the spread of z stays the same.
    for latent_dim in (3, 7):
        model = lipvae.HypersphericalVAE((1, 8, 8), latent_dim, "fc", (16,))
        with torch.no_grad():
            model.concentration.weight.zero_()
            model.concentration.bias.fill_(2.0)
        posterior = model.encode(torch.rand(2, 1, 8, 8))
        expected = 1 + latent_dim * math.log1p(math.exp(2.0))
        assert posterior.concentration.tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_elbo_is_log_likelihood_minus_divergence():
    model = small(latent_dim=5).double()
    x = images(4).double()
    noise = model.draw_noise(6, 4, torch.Generator().manual_seed(3))
    posterior = model.encode(x)
    q = VonMisesFisher(posterior.loc, posterior.concentration)
    z, _ = ops.vmf(q.loc, q.concentration, 6, noise.seed)
    logits = model.decode(z)
    pixels = x.flatten(1)
    log_likelihood = (pixels * logits - torch.nn.functional.softplus(logits)).sum(-1).mean(0)
    kl = kl_divergence(q, HypersphericalUniform(5))
    terms = model.elbo_terms(x, noise)
    torch.testing.assert_close(terms[0], log_likelihood)
    torch.testing.assert_close(terms[1], kl)
    elbo = model.elbo(x, 6, torch.Generator().manual_seed(3))
    torch.testing.assert_close(elbo, log_likelihood - kl)


def test_elbo_bounds_the_exact_likelihood():
    # On the circle log p(x) is an integral over an angle; an importance-weighted mean reaches it.
    model = small(latent_dim=2, input_shape=(1, 2, 2)).double()
    x = torch.rand(3, 1, 2, 2).double()
    angle = torch.arange(4000, dtype=torch.float64) * (2 * math.pi / 4000)
    circle = torch.stack([angle.cos(), angle.sin()], -1)[:, None].expand(-1, 3, -1)
    joint = model.log_likelihood(x, circle) + model.log_prior(circle)
    exact = torch.logsumexp(joint, 0) + math.log(2 * math.pi / 4000)
    with torch.no_grad():
        assert bool((model.elbo(x, 200_000) <= exact + 5e-3).all())
        posterior = model.encode(x)
        z = posterior.rsample(model.draw_noise(200_000, 3))
        log_weight = model.log_likelihood(x, z) + model.log_prior(z) - posterior.log_prob(z)
        estimate = torch.logsumexp(log_weight, 0) - math.log(200_000)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=2e-2)


def test_posterior_matches_the_distribution():
    loc = torch.nn.functional.normalize(torch.randn(4, 6).double(), dim=-1)
    posterior = VonMisesFisherPosterior(loc, torch.tensor([0.0, 1.0, 30.0, 1e6]).double())
    q = VonMisesFisher(posterior.loc, posterior.concentration)
    z = q.sample((5,))
    torch.testing.assert_close(posterior.log_prob(z), q.log_prob(z))
    torch.testing.assert_close(posterior.kl(), kl_divergence(q, HypersphericalUniform(6)))
    # All rows share the streams of sample k, whatever the first sample of a tile is.
    seed = torch.tensor([9])
    whole = posterior.rsample(Streams(seed, 7, shared=True))
    assert torch.equal(posterior.rsample(Streams(seed, 5, start=2, shared=True)), whole[2:])
    assert torch.equal(posterior[2].rsample(Streams(seed, 7, shared=True)), whole[:, 2:3])
    assert posterior[-1].loc.shape == (1, 6)
    assert posterior[1:3].concentration.tolist() == [1.0, 30.0]


def test_samples_of_the_prior_are_uniform_on_the_sphere():
    model = small(latent_dim=4)
    z = model._draw_prior(4000, torch.Generator().manual_seed(0))
    assert z.shape == (4000, 4)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4000))
    assert bool((z.mean(0).abs() < 5 * (0.25 / 4000) ** 0.5).all())  # variance 1/m each
    draws = [model.sample(4, torch.Generator().manual_seed(s), mean=False) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    area = torch.full((3,), -math.log(2 * math.pi**2))
    torch.testing.assert_close(model.log_prior(z[:3]), area)


def test_compiles_in_one_graph():
    model = small(architecture="conv", hidden=(4, 8, 16))
    x, noise = images(2), model.draw_noise(2, 2)
    terms = torch.compile(model.elbo_terms, fullgraph=True, backend="aot_eager")
    compiled, eager = terms(x, noise), model.elbo_terms(x, noise)
    for got, want in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    parameters = list(model.parameters())
    found = torch.autograd.grad(torch.sub(*compiled).sum(), parameters)
    for got, want in zip(
        found, torch.autograd.grad(torch.sub(*eager).sum(), parameters), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "discretized_logistic"])
def test_files(tmp_path, likelihood):
    model = small(likelihood=likelihood).eval()
    lipvae.save(model, tmp_path / "model")
    loaded = lipvae.load(tmp_path / "model")
    assert type(loaded) is HypersphericalVAE
    assert loaded.config == model.config
    x = images(3)
    for got, want in zip(
        lipvae.Scorer(loaded, num_samples=5)(x).values(),
        lipvae.Scorer(model, num_samples=5)(x).values(),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("latent_dim", [3, 40])
def test_training_raises_the_bound_and_resumes_bit_for_bit(tmp_path, latent_dim):
    x = images(96)
    x[:48] *= 0.1  # two kinds, so that there is something to encode
    options = {"lr": 1e-2, "batch_size": 32, "seed": 4, "progress": False}

    def fresh() -> HypersphericalVAE:
        torch.manual_seed(1)
        return small(latent_dim=latent_dim)

    whole = fresh()
    history = lipvae.fit(whole, x, epochs=6, **options)
    assert history.train_elbo[-1] > history.train_elbo[0] + 1
    assert history.validation_elbo[-1] > history.validation_elbo[0]
    parts = fresh()
    for epochs in (2, 6):
        lipvae.fit(parts, x, epochs=epochs, checkpoint=tmp_path / "c", resume=True, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name
    with torch.no_grad():
        loc = whole.encode(x).loc
    assert float(loc[0] @ loc[1]) > float(loc[0] @ loc[50])


def test_every_score_that_is_defined(tmp_path):
    model = small().eval()
    x, known = images(9), images(30, seed=1)
    scorer = lipvae.Scorer(model, "all", num_samples=16)
    assert {"typicality", "f_agg", "likelihood_regret"}.isdisjoint(scorer.names)
    scorer = lipvae.Scorer(
        model, "all", num_samples=16, calibration=scorer.calibrate(known).calibration
    )
    undefined = {"likelihood_regret"} | {s.name for s in SCORES.values() if s.source == "draws"}
    assert set(scorer.names) == SCORES.keys() - undefined
    scores = scorer(x)
    assert all(bool(torch.isfinite(score).all()) for score in scores.values())
    for name, score in scorer(x.flip(0)).items():
        assert torch.equal(score.flip(0), scores[name]), name
    q = model.encode(known)
    # Rounded to float32 they are no unit vectors in float64.
    loc, z = (normalize(p.loc.double(), dim=-1) for p in (q, model.encode(x)))
    aggregated = VonMisesFisher(loc, q.concentration.double())
    density = torch.logsumexp(aggregated.log_prob(z[:, None]), 1) - math.log(30)
    torch.testing.assert_close(scores["f_agg"], -density, rtol=1e-5, atol=1e-5)
    assert scorer.calibration is not None
    scorer.calibration.save(tmp_path / "calibration")
    again = Calibration.load(tmp_path / "calibration")
    assert isinstance(again.posterior, VonMisesFisherPosterior)
    second = lipvae.Scorer(model, ["f_agg"], num_samples=16, calibration=again)
    assert torch.equal(second(x)["f_agg"], scores["f_agg"])
    with pytest.raises(ValueError, match="needs a normal posterior, got von Mises-Fisher"):
        lipvae.Scorer(model, ["likelihood_regret"])


def test_seeds_of_64_bits():
    model, x = small().eval(), images(2)
    found = [
        lipvae.Scorer(model, ["elbo"], 8, seed)(x)["elbo"] for seed in (0, 1, 2**63, 2**64 - 1)
    ]
    assert len({float(score[0]) for score in found}) == 4


def test_an_ensemble_of_spheres():
    x = images(3)
    ensemble = lipvae.Ensemble([small().eval(), small().eval(), lipvae.VAE((1, 8, 8), 3, "fc")])
    scores = lipvae.Scorer(ensemble, ["waic"], num_samples=4)(x)
    assert bool(torch.isfinite(scores["waic"]).all())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"latent_dim": 1}, ValueError, "latent_dim must be at least 2, got 1"),
        ({"latent_dim": 3.0}, TypeError, "latent_dim"),
        ({"architecture": "resnet"}, ValueError, "architecture must be one of conv, fc"),
        ({"likelihood": "normal"}, ValueError, "likelihood must be one of"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        small(**arguments)


def test_bad_values():
    model = small().eval()
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        model.encode(images(2) * 255)
    with pytest.raises(ValueError, match=r"z must have shape \[..., 3\]"):
        model.log_prior(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        model.elbo(images(1), num_samples=0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        model.sample(0)
