"""Refined posteriors, against a model whose posterior is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import lipvae
from lipvae._packed_model import PackedModel
from lipvae.models.posterior import NormalPosterior
from lipvae.refinement import antithetic_noise, refined

SHAPE, DIM, PIXELS = (1, 4, 4), 3, 16


def linear_model(noise_variance: float) -> tuple[lipvae.VAE, torch.Tensor]:
    """p(x | z) = N(W z, s^2 I) with orthogonal columns of W, so that p(z | x) is diagonal."""
    model = lipvae.VAE(SHAPE, DIM, architecture="fc", hidden=(8,), likelihood="gaussian").double()
    columns = torch.linalg.qr(torch.randn(PIXELS, DIM, dtype=torch.float64))[0]
    columns = columns * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    head = nn.Linear(DIM, 2 * PIXELS).double()
    with torch.no_grad():
        head.weight.zero_()[:PIXELS] = columns
        head.bias.zero_()[PIXELS:] = 0.5 * math.log(noise_variance)
    model.decoder = nn.Sequential(head)
    return model.eval(), columns


@pytest.mark.parametrize("noise_variance", [0.05, 1.0])
def test_one_step_reaches_the_posterior_mean_of_a_linear_model(noise_variance: float) -> None:
    torch.manual_seed(0)
    model, columns = linear_model(noise_variance)
    x = torch.rand(6, PIXELS, dtype=torch.float64)
    precision = 1 + columns.square().sum(0) / noise_variance
    truth = (x @ columns / noise_variance) / precision
    start = NormalPosterior(torch.randn(6, DIM).double(), -precision.log().expand(6, DIM))
    found = refined(model, start, x, antithetic_noise(1, DIM), 1)
    torch.testing.assert_close(found.loc, truth, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.log_variance, start.log_variance)


def test_the_elbo_never_falls() -> None:
    torch.manual_seed(1)
    model = lipvae.LipschitzVAE(SHAPE, DIM, architecture="fc", hidden=(16,)).eval()
    for parameter in model.decoder.parameters():
        parameter.data *= 4  # far from quadratic
    x = torch.rand(20, *SHAPE)
    with torch.no_grad():
        posterior = model.encode(x)
    noise = antithetic_noise(2, DIM).float()

    def elbo(q: NormalPosterior) -> torch.Tensor:
        z = q.rsample(noise)
        logits, target = model.decode(z).double(), x.flatten(1).double()
        log_likelihood = (target * logits - nn.functional.softplus(logits)).sum(-1)
        return (log_likelihood - 0.5 * z.double().square().sum(-1)).mean(0)

    with torch.no_grad():
        values = [elbo(refined(model, posterior, x.flatten(1), noise, n)) for n in range(5)]
    rises = torch.stack(values).diff(dim=0)
    assert (rises > -1e-4).all()
    assert (rises[0] > 0.01).any()


def test_no_steps_change_nothing() -> None:
    model = lipvae.VAE(SHAPE, DIM, architecture="fc", hidden=(8,))
    posterior = NormalPosterior(torch.zeros(2, DIM), torch.zeros(2, DIM))
    noise = antithetic_noise(0, DIM)
    assert refined(model, posterior, torch.rand(2, PIXELS), noise, 0) is posterior


def test_noise_is_antithetic_and_not_that_of_the_samples() -> None:
    noise = antithetic_noise(3, DIM)
    assert noise.sum() == 0
    samples = lipvae.noise.standard_normal(3, 8, DIM)
    assert not (noise[:8, 0] == samples).any()


@pytest.mark.parametrize("decoder_lipschitz", [None, 3.0])
@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_scores_do_not_depend_on_the_batch(
    architecture: str, decoder_lipschitz: float | None
) -> None:
    torch.manual_seed(3)
    model = lipvae.LipschitzVAE(
        (1, 8, 8),
        2,
        architecture=architecture,
        hidden=(4, 8) if architecture == "conv" else (16,),
        decoder_lipschitz=decoder_lipschitz,
    )
    x = torch.rand(11, 1, 8, 8)
    scorer = lipvae.Scorer(model, num_samples=16, refine=2)
    whole = scorer(x)
    order = torch.randperm(11)
    shuffled, alone = scorer(x[order]), scorer(x[4:5])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = scorer(x)
    finally:
        torch.set_num_threads(threads)
    plain = lipvae.Scorer(model, num_samples=16)(x)
    for name, values in whole.items():
        assert torch.equal(values[order], shuffled[name])
        assert torch.equal(values[4:5], alone[name])
        assert torch.equal(values, threaded[name])
    assert not torch.equal(whole["hole_indicator"], plain["hole_indicator"])
    assert (whole["elbo"] < plain["elbo"] + 0.5).all()  # negated: lower is likelier
    assert whole["elbo"].mean() < plain["elbo"].mean()
    assert all(p.grad is None for p in model.parameters())


def test_what_refine_takes() -> None:
    model = lipvae.VAE(SHAPE, DIM, architecture="fc", hidden=(8,))
    with pytest.raises(ValueError, match="refine"):
        lipvae.Scorer(model, refine=-1)
    with pytest.raises(TypeError, match="refine"):
        lipvae.Scorer(model, refine=1.5)  # type: ignore[arg-type]
    sphere = lipvae.HypersphericalVAE(SHAPE, DIM, architecture="fc", hidden=(8,))
    with pytest.raises(ValueError, match=r"refine must be 0 .* HypersphericalVAE"):
        lipvae.Scorer(sphere, refine=1)
    with pytest.raises(ValueError, match="not normal"):
        lipvae.Scorer(lipvae.Ensemble([sphere, sphere]), refine=1)
    assert "refine=2" in repr(lipvae.Scorer(model, refine=2))


def test_a_calibration_belongs_to_its_number_of_steps() -> None:
    model = lipvae.VAE(SHAPE, DIM, architecture="fc", hidden=(8,))
    data = torch.rand(10, *SHAPE)
    scorer = lipvae.Scorer(model, ["typicality"], num_samples=4, refine=1).calibrate(data)
    again = lipvae.Scorer(
        model, ["typicality"], num_samples=4, refine=1, calibration=scorer.calibration
    )
    assert torch.equal(again(data)["typicality"], scorer(data)["typicality"])
    with pytest.raises(ValueError, match="refine=0"):
        lipvae.Scorer(model, ["typicality"], num_samples=4, calibration=scorer.calibration)


def test_an_ensemble_is_refined_by_its_members() -> None:
    torch.manual_seed(4)
    members = [lipvae.VAE(SHAPE, DIM, architecture="fc", hidden=(8,)) for _ in range(2)]
    x = torch.rand(3, *SHAPE)
    plain, steps = (lipvae.Scorer(lipvae.Ensemble(members), refine=n)(x)["waic"] for n in (0, 1))
    assert not torch.equal(plain, steps)


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_the_search_by_a_packed_decoder_finds_the_same_means(architecture: str) -> None:
    torch.manual_seed(3)
    hidden = {"fc": (24,), "conv": (4, 8, 16)}[architecture]
    model = lipvae.VAE((1, 8, 8), latent_dim=3, architecture=architecture, hidden=hidden).eval()
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        posterior = model.encode(x)
    packed = PackedModel(model).decoder()
    assert packed is not None
    arguments = model, posterior, x.flatten(1), antithetic_noise(0, 3), 2
    expected = refined(*arguments)
    found = refined(*arguments, packed.log_likelihood)
    assert not torch.equal(expected.loc, posterior.loc)
    torch.testing.assert_close(found.loc, expected.loc, rtol=1e-4, atol=1e-5)
