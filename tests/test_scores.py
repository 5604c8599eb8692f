"""The definitions of the scores, by closed forms and by brute force."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

import lipvae
from lipvae._importance_pass import by_columns
from lipvae.models import NormalPosterior
from lipvae.scores import SCORES, Score, complexity, confounds, ensembles, latent, regret, select


def small(**options: object) -> lipvae.VAE:
    settings: dict = {"architecture": "fc", "hidden": (16,)} | options
    return lipvae.VAE((1, 8, 8), 2, **settings).eval()


# Ensembles.


@pytest.mark.parametrize("offset", [0.0, -1e5])
def test_ensemble_scores_against_exact_arithmetic(offset: float) -> None:
    ll = torch.randn(7, 20, dtype=torch.float64) * 3
    shifted = ll + offset
    exact = np.exp(np.asarray(ll, dtype=np.longdouble))
    v = exact / exact.sum(0)
    np.testing.assert_allclose(ensembles.disagreement(shifted), -1 / (v**2).sum(0), rtol=1e-9)
    np.testing.assert_allclose(ensembles.entropy(shifted), (v * np.log(v)).sum(0), rtol=1e-9)
    mean = np.log(exact.mean(0)) + offset
    np.testing.assert_allclose(ensembles.ensemble_log_likelihood(shifted), -mean, rtol=1e-12)
    waic = np.asarray(ll).mean(0) - np.asarray(ll).var(0, ddof=1) + offset
    np.testing.assert_allclose(ensembles.waic(shifted), -waic, rtol=1e-9)
    std = np.asarray(ll).std(0, ddof=1)
    np.testing.assert_allclose(ensembles.ensemble_stds_of_lls(shifted), std, rtol=1e-9)
    for mean in (ensembles.mean_hole_indicator, ensembles.mean_stds_of_lls):
        np.testing.assert_allclose(mean(ll.abs()), np.abs(np.asarray(ll)).mean(0), rtol=1e-12)


def test_a_single_model_that_explains_everything_is_the_lower_end() -> None:
    ll = torch.full((5, 1), -1e6, dtype=torch.float64)
    ll[2] = -10.0
    assert ensembles.disagreement(ll).item() == -1.0
    assert ensembles.entropy(ll).item() == 0.0
    ll[:] = -1e6
    assert ensembles.disagreement(ll).item() == pytest.approx(-5)
    assert ensembles.entropy(ll).item() == pytest.approx(-math.log(5))


def test_disagreement_between_models_raises_every_ensemble_score() -> None:
    calm = torch.randn(8, 1, dtype=torch.float64) * 0.1 - 100
    torn = torch.randn(8, 1, dtype=torch.float64) * 10 - 100
    for score in ensembles.SCORES[:4]:
        assert score.statistic(torn) > score.statistic(calm), score.name


# Confounds.


def test_confounds_against_numpy() -> None:
    images = (torch.rand(6, 3, 5, 4) * 8).floor() / 255
    for i, image in enumerate(images.numpy()):
        _, counts = np.unique(np.rint(image * 255), return_counts=True)
        entropy = scipy.stats.entropy(counts, base=2)
        assert confounds.pixel_entropy(images)[i].item() == pytest.approx(-entropy, rel=1e-12)
        assert confounds.pixel_mean(images)[i].item() == pytest.approx(-image.mean(), rel=1e-6)
        assert confounds.nonzero_pixels(images)[i].item() == -np.count_nonzero(image)


# Input complexity.


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 31), (2, 8, 8)])
def test_code_lengths_are_of_lossless_files(shape: tuple[int, int, int], monkeypatch) -> None:
    images = torch.randint(0, 256, (3, *shape)).float() / 255
    images[1] = 0.5
    files: list[bytes] = []
    original = complexity._size

    def spy(image: Image.Image, kind: str, **options: object) -> int:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files.append(stream.getvalue())
        decoded = np.asarray(Image.open(io.BytesIO(files[-1])))
        pixels = np.asarray(image)
        # WebP stores grey images as colour.
        decoded = decoded[..., 0] if decoded.ndim > pixels.ndim else decoded
        assert np.array_equal(decoded, pixels), kind
        return original(image, kind, **options)

    monkeypatch.setattr(complexity, "_size", spy)
    lengths = complexity.code_length(images)
    planes = 1 if shape[0] == 3 else shape[0]
    assert len(files) == 3 * 3 * planes
    sizes = np.array([len(f) for f in files]).reshape(3, planes, 3)
    assert lengths.tolist() == (8 * sizes.min(2).sum(1)).tolist()
    assert lengths[1] < lengths[0]


def test_code_lengths_do_not_depend_on_the_batch() -> None:
    images = torch.rand(100, 1, 8, 8)
    whole = complexity.code_length(images)
    assert torch.equal(whole[70:], complexity.code_length(images[70:]))
    with pytest.raises(ValueError, match="at least one image"):
        complexity.code_length(images[:0])


def test_bits_of_a_uniform_model() -> None:
    # Whatever the family, the uniform distribution over 256 levels (or over [0, 1]) takes about
    # eight bits a pixel.
    d = 64
    x = torch.randint(0, 256, (2, d)).float() / 255
    flat = {"categorical256": torch.zeros(2, 256 * d), "continuous_bernoulli": torch.zeros(2, d)}
    for family, parameters in flat.items():
        ll = lipvae.likelihoods.get(family).log_prob(parameters, x).double()
        got = complexity.bits(ll, family, d)
        exact = d * (8 if family == "categorical256" else math.log2(255))
        torch.testing.assert_close(got, torch.full((2,), exact).double(), rtol=1e-6, atol=0)


def test_bits_of_a_density_approach_those_of_its_levels() -> None:
    # A wide logistic as 256 bins, and as a density times the bins' width.
    scale, x = 0.2, torch.tensor([0.3])
    density = scipy.stats.logistic(0.4, scale).logpdf(0.3)
    mass = lipvae.likelihoods.get("discretized_logistic").log_prob(
        torch.tensor([[0.4, math.log(scale)]]), x.unsqueeze(0)
    )
    got = complexity.bits(torch.tensor([density]), "gaussian", 1)
    assert got.item() == pytest.approx(-mass.item() / math.log(2), abs=1e-3)


@pytest.mark.parametrize("family", ["bernoulli", "gaussian", "categorical256"])
def test_input_complexity_is_the_difference(family: str) -> None:
    model = small(likelihood=family)
    x = torch.rand(3, 1, 8, 8)
    scorer = lipvae.Scorer(model, ["is_log_likelihood", "input_complexity"], num_samples=8)
    found = scorer(x)
    expected = found["is_log_likelihood"] / math.log(2) - complexity.code_length(x)
    expected += 64 * math.log2(255) if family == "gaussian" else 0
    torch.testing.assert_close(found["input_complexity"], expected)


def test_a_pillow_without_a_codec_is_named(monkeypatch) -> None:
    monkeypatch.setattr(complexity.features, "check", lambda name: name != "jpg_2000")
    with pytest.raises(RuntimeError, match="Pillow with JPEG 2000"):
        complexity.code_length(torch.rand(1, 1, 8, 8))


# Scores of the latent space.


def test_lipschitz_ratio_by_brute_force(monkeypatch) -> None:
    monkeypatch.setattr(latent, "_ELEMENTS", 40)  # several chunks
    x, r = torch.rand(11, 6), torch.rand(9, 6)
    fx, fr = torch.rand(11, 2), torch.rand(9, 2)
    x[3] = r[4]
    got = latent.lipschitz_ratio(x, fx, r, fr)
    for i in range(11):
        distances = [float((x[i].double() - r[j].double()).norm()) for j in range(9)]
        j = min((d, j) for j, d in enumerate(distances) if d > 0)[1]
        expected = float((fx[i].double() - fr[j].double()).norm()) / distances[j]
        assert got[i].item() == pytest.approx(expected, rel=1e-12)
    assert latent.lipschitz_ratio(r[:1], fr[:1], r[:1], fr[:1]).item() == 0


def test_aggregated_density_by_brute_force(monkeypatch) -> None:
    monkeypatch.setattr(latent, "_ELEMENTS", 60)
    q = NormalPosterior(torch.randn(10, 3).double(), torch.randn(10, 3).double())
    z = torch.randn(7, 3).double() * 3
    got = latent.aggregated_log_density(z, q)
    for i in range(7):
        densities = [
            np.prod(scipy.stats.norm(q.loc[j], q.scale[j]).pdf(z[i].numpy())) for j in range(10)
        ]
        assert got[i].item() == pytest.approx(math.log(np.mean(densities)), rel=1e-10)
    far = latent.aggregated_log_density(z[:1] + 1e4, q)
    assert torch.isfinite(far).all()
    assert far < -1e6


def test_a_lipschitz_encoder_bounds_f_lip() -> None:
    model = lipvae.LipschitzVAE((1, 8, 8), 2, "fc", (16,), lipschitz=3.0).eval()
    scorer = lipvae.Scorer(model, ["f_lip"], num_samples=2).calibrate(torch.rand(50, 1, 8, 8))
    # In L-infinity the bound is M; the Euclidean ratio may be larger by sqrt(m) at most.
    assert (scorer(torch.rand(20, 1, 8, 8))["f_lip"] <= 3.0 * math.sqrt(2)).all()


# Typicality and calibration.


def test_calibrated_scores_by_hand() -> None:
    model = small()
    train, x = torch.rand(30, 1, 8, 8), torch.rand(4, 1, 8, 8)
    names = ["typicality", "f_lip", "f_agg", "is_log_likelihood"]
    scorer = lipvae.Scorer(model, names, num_samples=16, seed=3).calibrate(train)
    found = scorer(x)
    entropy = lipvae.Scorer(model, ["is_log_likelihood"], 16, 3)(train)["is_log_likelihood"].mean()
    torch.testing.assert_close(found["typicality"], (found["is_log_likelihood"] - entropy).abs())
    with torch.no_grad():
        q, p = model.encode(train), model.encode(x)
    double = NormalPosterior(q.loc.double(), q.log_variance.double())
    expected = -latent.aggregated_log_density(p.loc.double(), double)
    torch.testing.assert_close(found["f_agg"], expected, rtol=1e-5, atol=1e-5)
    ratio = latent.lipschitz_ratio(x.flatten(1), p.loc, train.flatten(1), q.loc)
    torch.testing.assert_close(found["f_lip"], ratio, rtol=1e-5, atol=1e-6)


def test_calibration_takes_a_reproducible_choice() -> None:
    model, data = small(), lipvae.data.load("digits")
    scorers = [lipvae.Scorer(model, ["typicality"], 4).calibrate(data, 20) for _ in range(2)]
    images = [scorer.calibration.images for scorer in scorers]
    assert torch.equal(*images)
    assert images[0].shape == (20, 1, 8, 8)
    assert scorers[0].calibration.entropy == scorers[1].calibration.entropy


def test_calibration_saves_loads_and_knows_its_model(tmp_path) -> None:
    model = small()
    x = torch.rand(3, 1, 8, 8)
    scorer = lipvae.Scorer(model, ["typicality", "f_lip", "f_agg"], 8)
    with pytest.raises(RuntimeError, match="'typicality' needs training images: call calibrate"):
        scorer(x)
    expected = scorer.calibrate(torch.rand(20, 1, 8, 8))(x)
    scorer.calibration.save(tmp_path / "c")
    loaded = lipvae.calibration.Calibration.load(tmp_path / "c")
    again = lipvae.Scorer(model, "all", 8, calibration=loaded)
    found = again(x)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="num_samples=9, got one of 8"):
        lipvae.Scorer(model, None, 9, calibration=loaded)
    with pytest.raises(ValueError, match="other weights"):
        lipvae.Scorer(small(), None, 8, calibration=loaded)
    lipvae.save(model, tmp_path / "m")
    with pytest.raises(ValueError, match="must hold a calibration"):
        lipvae.calibration.Calibration.load(tmp_path / "m")


# Likelihood regret.


def linear_gaussian(shift: float, widening: float) -> tuple[lipvae.VAE, torch.Tensor]:
    """A model whose true posterior is a diagonal normal, and images of it.

    The encoder's means are `shift` true standard deviations off, its variances e^widening too wide.
    """
    generator = torch.Generator().manual_seed(0)
    m, pixels, sigma, scale = 4, 64, 0.1, 0.5
    model = lipvae.VAE((1, 8, 8), m, "fc", (16,), likelihood="gaussian").double().eval()
    columns = torch.linalg.qr(torch.randn(pixels, m, generator=generator).double()).Q * scale
    variance = 1 / (1 + scale**2 / sigma**2)
    decoder, loc, log_variance = (
        torch.nn.Linear(a, b).double() for a, b in ((m, 2 * pixels), (pixels, m), (pixels, m))
    )
    with torch.no_grad():
        for layer in (decoder, loc, log_variance):
            layer.weight.zero_()
        decoder.weight[:pixels] = columns
        decoder.bias[:pixels], decoder.bias[pixels:] = 0.5, math.log(sigma)
        loc.weight.copy_(variance / sigma**2 * columns.T)
        loc.bias.copy_(shift * math.sqrt(variance) - 0.5 * loc.weight.sum(1))
        log_variance.bias.fill_(math.log(variance) + widening)
    model.decoder, model.trunk = torch.nn.Sequential(decoder), torch.nn.Flatten()
    model.loc, model.log_variance = loc, log_variance
    z = torch.randn(5, m, generator=generator).double()
    noise = torch.randn(5, pixels, generator=generator).double()
    return model, (0.5 + z @ columns.T + sigma * noise).clamp(0, 1).view(5, 1, 8, 8)


@pytest.mark.parametrize(("shift", "widening"), [(1.0, 0.0), (0.5, 0.7), (-2.0, -1.0)])
def test_regret_is_the_divergence_from_a_true_posterior_that_is_normal(
    shift: float, widening: float
) -> None:
    model, x = linear_gaussian(shift, widening)
    divergence = 4 * 0.5 * (math.exp(widening) - 1 - widening + shift**2)
    found = regret.regret(model, x, settings=regret.RegretSettings(60, 0.1))
    np.testing.assert_allclose(found, divergence, rtol=0.05)


@pytest.mark.parametrize("pairs", [1, 4])
def test_nothing_is_gained_from_the_noise_of_the_optimisation(pairs: int) -> None:
    model, x = linear_gaussian(0.0, 0.0)
    for seed in range(3):
        found = regret.regret(model, x, seed, regret.RegretSettings(50, 0.1, pairs))
        assert ((found >= 0) & (found < 0.1)).all()


def test_regret_depends_on_the_seed_of_the_scorer() -> None:
    model, x = small(), torch.rand(3, 1, 8, 8)
    first, again, other = (
        lipvae.Scorer(model, ["likelihood_regret"], 2, seed)(x)["likelihood_regret"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_regret_without_steps_is_zero() -> None:
    model, x = small(), torch.rand(5, 1, 8, 8)
    assert (regret.regret(model, x, settings=regret.RegretSettings(0)) == 0).all()
    assert (regret.regret(model, x, settings=regret.RegretSettings(30, 0.5)) > 0).all()


def test_regret_hardly_depends_on_the_batch() -> None:
    model, x = small(), torch.rand(70, 1, 8, 8)
    scorer = lipvae.Scorer(model, ["likelihood_regret"], 2)
    whole, part = scorer(x)["likelihood_regret"], scorer(x[60:])["likelihood_regret"]
    torch.testing.assert_close(whole[60:], part, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in model.parameters())


# The scorer.


def test_an_ensemble_is_scored_member_by_member() -> None:
    members = [small() for _ in range(3)]
    x = torch.rand(4, 1, 8, 8)
    scorer = lipvae.Scorer(lipvae.Ensemble(members), num_samples=8, seed=2)
    assert scorer.names == tuple(score.name for score in ensembles.SCORES)
    found = scorer(x)
    draws = [lipvae.Scorer(member, None, 8, 2).statistics(x) for member in members]
    for score in ensembles.SCORES:
        truth = score.statistic(torch.stack([getattr(draw, score.of) for draw in draws]))
        torch.testing.assert_close(found[score.name], truth, rtol=2e-15, atol=1e-15)
    for name in ("hole_indicator", "stds_of_lls"):
        mean = sum(lipvae.Scorer(m, [name], 8, 2)(x)[name] for m in members) / 3
        torch.testing.assert_close(found[f"mean_{name}"], mean, rtol=1e-14, atol=0)
    part = scorer(x[2:])
    assert all(torch.equal(part[name], found[name][2:]) for name in found)
    for draw, of in zip(scorer.statistics_of_draws(x), draws, strict=True):
        assert torch.equal(draw.elbo, of.elbo)
    with pytest.raises(TypeError, match="needs a single model"):
        scorer.statistics(x)
    with pytest.raises(TypeError, match=r"an ensemble or a lipvae\.BayesianVAE, got a VAE"):
        lipvae.Scorer(members[0]).statistics_of_draws(x)
    with pytest.raises(ValueError, match="'hole_indicator' needs a single model, got an ensemble"):
        lipvae.Scorer(lipvae.Ensemble(members), ["hole_indicator"])


@pytest.mark.parametrize("score", ensembles.SCORES, ids=lambda score: score.name)
def test_no_column_reaches_another(score: Score) -> None:
    table = 10 * torch.randn(3, 37, dtype=torch.float64)
    whole = by_columns(score.statistic, table)
    torch.testing.assert_close(whole, score.statistic(table), rtol=2e-15, atol=1e-15)
    for first in range(0, 37, 5):
        for last in range(first + 1, 37, 3):
            assert torch.equal(by_columns(score.statistic, table[:, first:last]), whole[first:last])


def test_a_bayesian_model_gives_all_scores() -> None:
    model = lipvae.BayesianVAE((1, 8, 8), 2, "fc", (16,), initial_scale=0.1)
    x = torch.rand(3, 1, 8, 8)
    scorer = lipvae.Scorer(model, "all", num_samples=8, seed=4, num_draws=3)
    assert {"hole_indicator", "waic", "input_complexity"} <= set(scorer.names)
    assert "typicality" not in scorer.names
    found = scorer(x)
    assert model.training
    ensemble = lipvae.Scorer(model.ensemble(3, seed=4), num_samples=8, seed=4)(x)
    assert all(torch.equal(found[name], ensemble[name]) for name in ensemble)
    scorer.calibrate(torch.rand(10, 1, 8, 8))
    assert set(lipvae.Scorer(model, "all", 8, 4, calibration=scorer.calibration).names) == set(
        SCORES
    )
    with torch.no_grad():  # other weights, other draws
        model.decoder[0].weight.add_(1)
    assert not torch.equal(scorer(x)["waic"], found["waic"])


def test_what_a_single_model_and_few_draws_lack() -> None:
    with pytest.raises(ValueError, match="'waic' needs an ensemble or a Bayesian model"):
        lipvae.Scorer(small(), ["waic"])
    model = lipvae.BayesianVAE((1, 8, 8), 2, "fc", (16,))
    with pytest.raises(ValueError, match="'entropy' needs num_draws of at least 2, got 1"):
        lipvae.Scorer(model, ["entropy"], num_draws=1)
    with pytest.raises(ValueError, match="'mean_hole_indicator' needs num_samples of at least 2"):
        lipvae.Scorer(model, ["mean_hole_indicator"], num_samples=1)
    assert "mean_hole_indicator" not in lipvae.Scorer(model, num_samples=1).names
    other = [score.name for score in select("all", 2, posterior="other")]
    assert "likelihood_regret" not in other
    assert "hole_indicator" in other
    with pytest.raises(ValueError, match="'likelihood_regret' needs a normal posterior, got other"):
        select(["likelihood_regret"], 2, posterior="other")
    names = [score.name for score in select("all", 1, calibrated=True)]
    assert "hole_indicator" not in names
    assert {"pixel_entropy", "typicality"} <= set(names)


def test_scores_of_images_need_no_pass(monkeypatch) -> None:
    scorer = lipvae.Scorer(small(), ["pixel_entropy"])
    monkeypatch.setattr(lipvae.VAE, "_encode", None)
    assert scorer(torch.rand(2, 1, 8, 8))["pixel_entropy"].shape == (2,)


def test_statistics_are_computed_once(monkeypatch) -> None:
    from lipvae._importance_pass import ImportancePass

    calls = []
    original = ImportancePass.run

    def counted(self, x, block):
        calls.append(len(x))
        return original(self, x, block)

    monkeypatch.setattr(ImportancePass, "run", counted)
    names = ["hole_indicator", "input_complexity", "is_log_likelihood", "pixel_mean"]
    lipvae.Scorer(small(), names, 4)(torch.rand(2, 1, 8, 8))
    assert calls == [2]
