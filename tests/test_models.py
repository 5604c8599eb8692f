"""Models: shapes, the bound against exact likelihoods, layout, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import lipvae
from lipvae import VAE, LipschitzVAE
from lipvae.likelihoods import LIKELIHOODS
from lipvae.models import NormalPosterior, default_lipschitz
from lipvae.nn import LipschitzLinear, lipschitz_layers
from lipvae.nn.sequential import layer_radius

SHAPES = [
    ("fc", (1, 8, 8)),
    ("fc", (2, 3, 1)),
    ("conv", (1, 28, 28)),
    ("conv", (3, 32, 32)),
    ("conv", (1, 8, 8)),
    ("conv", (2, 29, 13)),
]


def small(cls=VAE, **arguments):
    defaults = {"input_shape": (1, 8, 8), "latent_dim": 3, "architecture": "fc", "hidden": (16, 8)}
    return cls(**(defaults | arguments))


@pytest.mark.parametrize("cls", [VAE, LipschitzVAE])
@pytest.mark.parametrize(("architecture", "shape"), SHAPES)
def test_shapes_and_gradients(cls, architecture, shape):
    model = cls(shape, 4, architecture)
    x = torch.rand(2, *shape)
    posterior = model.encode(x)
    assert posterior.loc.shape == posterior.log_variance.shape == (2, 4)
    z = posterior.rsample(model.draw_noise(3, 2))
    assert z.shape == (3, 2, 4)
    parameters = model.decode(z)
    assert parameters.shape == (3, 2, math.prod(shape))
    assert model.log_likelihood(x, z).shape == (3, 2)
    assert model.decode(z[0, 0]).shape == (math.prod(shape),)
    elbo = model.elbo(x, num_samples=3)
    assert elbo.shape == (2,)
    elbo.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name
    assert model.sample(5).shape == (5, *shape)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_every_likelihood(likelihood, architecture):
    model = VAE((2, 8, 8), 3, architecture, likelihood=likelihood)
    x = torch.rand(2, 2, 8, 8)
    assert bool(torch.isfinite(model.elbo(x)).all())
    parameters = model.decode(torch.randn(2, 3))
    assert parameters.shape == (2, 128 * model.likelihood.parameters_per_dim)
    for mean in (True, False):
        assert model.sample(2, mean=mean).shape == (2, 2, 8, 8)


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_decoded_parameters_are_parameter_major_then_channel_row_column(architecture):
    # A decoder that ignores z and writes its last bias: each output channel is one constant.
    model = VAE((2, 8, 8), 3, architecture, likelihood="gaussian")
    head = model.decoder[-1]
    with torch.no_grad():
        head.weight.zero_()
        if architecture == "conv":
            head.bias.copy_(torch.tensor([0.1, 0.2, -30.0, -20.0]))  # (parameter, channel)
        else:
            constants = torch.tensor([0.1, 0.2, -30.0, -20.0])
            head.bias.copy_(constants.repeat_interleave(64))
    parameters = model.decode(torch.randn(1, 3))[0]
    mean, log_scale = parameters.view(2, 2, 8, 8)
    assert mean[0].unique().tolist() == pytest.approx([0.1])
    assert mean[1].unique().tolist() == pytest.approx([0.2])
    assert log_scale[:, 0, 0].tolist() == [-30.0, -20.0]
    image = model.sample(1)[0]
    assert image[0].unique().tolist() == pytest.approx([0.1])
    assert image[1].unique().tolist() == pytest.approx([0.2])


def test_elbo_is_log_likelihood_minus_divergence():
    model = small().double()
    x, noise = torch.rand(4, 1, 8, 8).double(), torch.randn(5, 4, 3).double()
    posterior = model.encode(x)
    q = Normal(posterior.loc, torch.exp(0.5 * posterior.log_variance))
    z = posterior.loc + q.scale * noise
    logits = model.decode(z)
    pixels = x.flatten(1)
    log_likelihood = (pixels * logits - nn.functional.softplus(logits)).sum(-1).mean(0)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    terms = model.elbo_terms(x, noise)
    torch.testing.assert_close(terms[0], log_likelihood)
    torch.testing.assert_close(terms[1], kl)
    generator = torch.Generator().manual_seed(3)
    same = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    elbo = model.elbo(x, 5, generator)
    torch.testing.assert_close(elbo, torch.sub(*model.elbo_terms(x, same)))
    torch.testing.assert_close(model(x).shape, torch.Size([4]))


def test_elbo_bounds_the_exact_likelihood():
    # m = 1: log p(x) by quadrature over z; the bound must lie below, and an importance-weighted
    # mean of the same samples must reach it.
    model = small(latent_dim=1, input_shape=(1, 2, 2)).double()
    x = torch.rand(3, 1, 2, 2).double()
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None, None].expand(-1, 3, 1)
    joint = model.log_likelihood(x, grid) + model.log_prior(grid)
    exact = torch.logsumexp(joint, 0) + math.log(16 / 4000)
    with torch.no_grad():
        assert bool((model.elbo(x, 20_000) <= exact + 5e-3).all())
        posterior = model.encode(x)
        z = posterior.rsample(model.draw_noise(20_000, 3))
        log_weight = model.log_likelihood(x, z) + model.log_prior(z) - posterior.log_prob(z)
        estimate = torch.logsumexp(log_weight, 0) - math.log(20_000)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=2e-2)


def test_posterior_matches_torch_distributions():
    loc, log_variance = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    posterior = NormalPosterior(loc, log_variance)
    q = Normal(loc, (0.5 * log_variance).exp())
    z = torch.randn(6, 4, 3).double()
    torch.testing.assert_close(posterior.scale, q.scale)
    torch.testing.assert_close(posterior.log_prob(z), q.log_prob(z).sum(-1))
    torch.testing.assert_close(posterior.kl(), kl_divergence(q, Normal(0.0, 1.0)).sum(-1))
    shared = posterior.rsample(z[:, :1])
    torch.testing.assert_close(shared[:, 2], posterior[2].rsample(z[:, :1])[:, 0])
    assert posterior[-1].loc.shape == (1, 3)
    assert posterior[1:3].loc.shape == (2, 3)


def test_kl_keeps_its_digits_near_the_prior():
    # exp(v) - 1 - v cancels in float32; the truth is v^2 / 2 + v^3 / 6.
    v = 1e-3
    posterior = NormalPosterior(torch.zeros(1, 1), torch.full((1, 1), v))
    assert float(posterior.kl()) == pytest.approx(0.5 * (v**2 / 2 + v**3 / 6), rel=1e-3)


def test_log_prior_is_standard_normal():
    z = torch.randn(5, 4, 3).double()
    want = Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(small().log_prior(z), want)


@pytest.mark.parametrize("cls", [VAE, LipschitzVAE])
def test_decoder_splits_into_hidden_and_head(cls):
    model = small(cls)
    z = torch.randn(3, 2, 3)
    head = model.decoder_head()
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(head(model.decode_hidden(z)), model.decode(z))
    conv = VAE((1, 8, 8), 3, "conv")
    assert conv.decoder_head() is None
    with pytest.raises(RuntimeError, match="does not end in a linear layer"):
        conv.decode_hidden(z)


@pytest.mark.parametrize(
    ("latent_dim", "bound"), [(1, 3.0), (2, 3.0), (10, 5.0), (70, 10.0), (4, 4.0)]
)
def test_default_bound(latent_dim, bound):
    assert default_lipschitz(latent_dim) == bound


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_every_layer_on_the_way_to_the_mean_has_the_root_as_radius(architecture):
    model = LipschitzVAE((1, 8, 8), 10, architecture)
    layers = lipschitz_layers(model.trunk, model.loc)
    assert len(layers) == (3 if architecture == "fc" else 4)
    radius = layer_radius(5.0, len(layers))
    assert [layer.lipschitz for layer in layers] == [radius] * len(layers)
    assert isinstance(model.log_variance, LipschitzLinear)
    assert model.log_variance.lipschitz == radius
    assert not lipschitz_layers(model.decoder)
    assert not any(isinstance(m, nn.ReLU) for m in model.trunk.modules())
    free = LipschitzVAE((1, 8, 8), 10, architecture, constrain_log_variance=False)
    assert isinstance(free.log_variance, nn.Linear)
    assert len(lipschitz_layers(free)) == len(layers)


def test_encoder_is_lipschitz_after_large_steps():
    model = LipschitzVAE((1, 8, 8), 10, "conv", lipschitz=2.5)
    with torch.no_grad():
        for layer in lipschitz_layers(model):
            layer.weight.normal_(std=10)
    model.double()
    x, y = torch.rand(2, 200, 1, 8, 8).double()
    distance = (x - y).abs().flatten(1).amax(1)
    for head in ("loc", "log_variance"):
        moved = (getattr(model.encode(x), head) - getattr(model.encode(y), head)).abs().amax(1)
        assert bool((moved <= 2.5 * distance).all())


def test_sampling_follows_the_generator():
    model = small()
    draws = [model.sample(4, torch.Generator().manual_seed(s), mean=False) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert set(draws[0].unique().tolist()) <= {0.0, 1.0}
    mean = model.sample(4, torch.Generator().manual_seed(0))
    assert bool(((mean > 0) & (mean < 1)).all())
    assert not mean.requires_grad


def test_config_builds_an_equal_model():
    for model in (
        small(likelihood="gaussian"),
        small(LipschitzVAE, lipschitz=2.0, group_size=4, constrain_log_variance=False),
    ):
        again = type(model)(**model.config)
        assert again.config == model.config
        again.load_state_dict(model.state_dict())
        x = torch.rand(2, 1, 8, 8)
        assert torch.equal(again.encode(x).loc, model.encode(x).loc)
        for key, value in model.config.items():
            assert f"{key}={value!r}" in repr(model)


def test_compiles_in_one_graph():
    model = LipschitzVAE((1, 8, 8), 3, "conv", hidden=(4, 8, 16))
    x, noise = torch.rand(2, 1, 8, 8), torch.randn(1, 2, 3)
    terms = torch.compile(model.elbo_terms, fullgraph=True, backend="aot_eager")
    for got, want in zip(terms(x, noise), model.elbo_terms(x, noise), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_pixels_are_checked_outside_training():
    model = small().eval()
    x = torch.rand(2, 1, 8, 8)
    model.encode(x)
    with pytest.raises(ValueError, match=r"got \[0, 1.00000024\]; clamp\(0, 1\)"):
        model.encode(torch.tensor([0.0, 1 + 2.0**-22]).repeat(32).view(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\].*divide 8-bit pixels by 255"):
        model.encode(x * 255)
    with pytest.raises(ValueError, match="x must be finite"):
        model.encode(x * math.nan)
    model.train().encode(x * 2)  # fit has checked its data


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), TypeError, "divide 8-bit pixels by 255"),
        (torch.rand(2, 64), ValueError, r"x must have shape \[B, 1, 8, 8\]"),
        (torch.rand(1, 8, 8), ValueError, r"x must have shape \[B, 1, 8, 8\]"),
        (torch.rand(0, 1, 8, 8), ValueError, "B >= 1"),
        (torch.rand(2, 1, 8, 8).double(), ValueError, "dtype and device of the model"),
        ([[0.0]], TypeError, "x must be a torch.Tensor"),
    ],
)
def test_bad_inputs(x, error, message):
    with pytest.raises(error, match=message):
        small().encode(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": (8, 8)}, ValueError, r"input_shape must be \(channels, height, width\)"),
        ({"input_shape": (1, 8, 0)}, ValueError, "input_shape must be at least 1, got 0"),
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1"),
        ({"architecture": "resnet"}, ValueError, "architecture must be one of conv, fc"),
        ({"hidden": ()}, ValueError, "hidden must be a non-empty sequence"),
        ({"hidden": 64}, ValueError, "hidden must be a non-empty sequence"),
        ({"hidden": (8, 0)}, ValueError, "hidden must be at least 1"),
        ({"hidden": (8,), "architecture": "conv"}, ValueError, "at least one convolution"),
        ({"input_shape": (1, 7, 9), "architecture": "conv"}, ValueError, "at least 8 pixels"),
        ({"hidden": (4,) * 5, "architecture": "conv"}, ValueError, "too small for them"),
        ({"likelihood": "normal"}, ValueError, "likelihood must be one of"),
    ],
)
@pytest.mark.parametrize("cls", [VAE, LipschitzVAE])
def test_bad_arguments(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        small(cls, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lipschitz": 0.0}, ValueError, "lipschitz must be positive"),
        ({"group_size": 3}, ValueError, "group_size must divide every width"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1"),
        ({"constrain_log_variance": 1}, TypeError, "constrain_log_variance must be a bool"),
    ],
)
def test_bad_lipschitz_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        small(LipschitzVAE, **arguments)


def test_bad_latents():
    model = small()
    with pytest.raises(ValueError, match=r"z must have shape \[..., 3\]"):
        model.decode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        model.elbo(torch.rand(1, 1, 8, 8), num_samples=0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        model.sample(0)


def test_public_names():
    assert lipvae.VAE is VAE
    assert lipvae.LipschitzVAE is LipschitzVAE
    assert issubclass(LipschitzVAE, VAE)
