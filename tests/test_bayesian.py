"""Bayes by Backprop: closed forms of its layers, and training, drawing and saving the model."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import lipvae
from lipvae.models import BayesianVAE, Ensemble
from lipvae.nn.bayesian import BayesianConvTranspose2d, BayesianLinear


def small(**options: object) -> BayesianVAE:
    settings: dict = {"architecture": "fc", "hidden": (16,)} | options
    return BayesianVAE((1, 8, 8), 2, **settings)


def layer_of(kind: str, reparameterization: str) -> BayesianLinear | BayesianConvTranspose2d:
    if kind == "linear":
        return BayesianLinear(6, 4, reparameterization, initial_scale=0.3).double()
    layer = BayesianConvTranspose2d(
        2, 3, 4, 2, 1, (1, 0), reparameterization=reparameterization, initial_scale=0.3
    )
    return layer.double()


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_kl_is_that_of_normal_distributions(kind: str) -> None:
    layer = layer_of(kind, "global")
    with torch.no_grad():
        layer.weight_rho.add_(torch.randn_like(layer.weight_rho))
    expected = sum(
        kl_divergence(Normal(mean, scale), Normal(0.0, 0.7)).sum()
        for _, mean, scale in layer.distributions()
    )
    torch.testing.assert_close(layer.kl(0.7), expected)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_evaluation_is_the_ordinary_layer_at_the_mean(kind: str) -> None:
    layer = layer_of(kind, "global").eval()
    plain = (
        torch.nn.Linear(6, 4)
        if kind == "linear"
        else torch.nn.ConvTranspose2d(2, 3, 4, 2, 1, (1, 0))
    ).double()
    plain.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    x = torch.randn(5, 6) if kind == "linear" else torch.randn(5, 2, 3, 4)
    assert torch.equal(layer(x.double()), plain(x.double()))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("reparameterization", ["global", "local"])
def test_outputs_have_the_exact_mean_and_variance(kind: str, reparameterization: str) -> None:
    layer = layer_of(kind, reparameterization)
    x = (torch.randn(1, 6) if kind == "linear" else torch.randn(1, 2, 3, 4)).double()
    mean = layer.eval()(x)
    variances = {n: scale.square() for n, _, scale in layer.distributions()}
    spread = torch.func.functional_call(
        layer, {"weight": variances["weight"], "bias": variances["bias"]}, x.square()
    )
    layer.train()
    generator = torch.Generator().manual_seed(3)
    draws = []
    for _ in range(1000):
        layer.redraw(generator)
        draws.append(layer(x).detach())
    got = torch.stack(draws)
    error = spread.sqrt() / 1000**0.5
    assert ((got.mean(0) - mean).abs() < 5 * error).all()
    # The variance of a normal sample variance is 2 sigma^4 / (n - 1).
    assert ((got.var(0) / spread - 1).abs() < 5 * (2 / 999) ** 0.5).all()


def test_global_draws_stay_until_the_next_and_local_ones_do_not() -> None:
    x = torch.rand(3, 6).double()
    layer = layer_of("linear", "global")
    first = layer(x)
    assert torch.equal(layer(x), first)
    layer.redraw(None)
    assert not torch.equal(layer(x), first)
    layer = layer_of("linear", "local")
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("reparameterization", ["global", "local"])
def test_gradients_reach_means_and_scales(kind: str, reparameterization: str) -> None:
    layer = layer_of(kind, reparameterization)
    x = (torch.rand(2, 6) if kind == "linear" else torch.rand(2, 2, 3, 4)).double()

    def forward(*parameters: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in layer.named_parameters()]
        layer.redraw(torch.Generator().manual_seed(0))
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(forward, tuple(layer.parameters()))


def test_local_gradients_are_finite_where_the_input_is_zero() -> None:
    layer = BayesianLinear(6, 4, "local")
    layer.bias = None
    layer(torch.zeros(2, 6)).sum().backward()
    assert torch.isfinite(layer.weight_rho.grad).all()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="reparameterization must be one of global, local"):
        small(reparameterization="flipout")
    with pytest.raises(ValueError, match="prior_scale must be positive"):
        small(prior_scale=0.0)
    with pytest.raises(ValueError, match="output_size is not supported"):
        BayesianConvTranspose2d(1, 1, 4)(torch.rand(1, 1, 2, 2), [5, 5])


def test_weight_kl_sums_over_the_decoder_alone() -> None:
    model = small()
    layers = [m for m in model.modules() if isinstance(m, BayesianLinear)]
    assert len(layers) == 2
    assert not any(isinstance(m, BayesianLinear) for m in model.trunk.modules())
    torch.testing.assert_close(model.weight_kl(), layers[0].kl(1.0) + layers[1].kl(1.0))
    assert lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,)).weight_kl() is None


def digits(n: int = 200) -> torch.Tensor:
    return lipvae.data.load("digits").float()[:n]


@pytest.mark.parametrize("reparameterization", ["global", "local"])
@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_training_is_reproducible_and_improves(architecture: str, reparameterization: str) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        hidden = (16,) if architecture == "fc" else (8, 16)
        model = small(
            architecture=architecture, hidden=hidden, reparameterization=reparameterization
        )
        state = torch.get_rng_state()
        history = lipvae.fit(model, digits(), epochs=4, batch_size=50, lr=1e-2, progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append((history.train_elbo, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][k], runs[1][1][k]) for k in runs[0][1])
    assert runs[0][0][-1] > runs[0][0][0] + 1


def test_resumed_training_is_the_same_bit_for_bit(tmp_path) -> None:
    torch.manual_seed(0)
    whole = small()
    parts = small()
    parts.load_state_dict(whole.state_dict())
    options = {"batch_size": 50, "progress": False, "checkpoint": tmp_path / "c"}
    lipvae.fit(parts, digits(), epochs=1, **options)
    lipvae.fit(parts, digits(), epochs=2, resume=True, **options)
    lipvae.fit(whole, digits(), epochs=2, batch_size=50, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_the_prior_pulls_the_weights_where_there_is_little_data() -> None:
    scales = {}
    for prior in (0.05, 1.0):
        torch.manual_seed(0)
        model = small(prior_scale=prior)
        lipvae.fit(model, digits(20), epochs=60, batch_size=20, lr=1e-2, progress=False)
        scales[prior] = float(model.decoder[-1].weight.detach().std())
    assert scales[0.05] < 0.7 * scales[1.0]


def test_warmup_anneals_the_weights_divergence() -> None:
    finals = []
    for warmup in (0, 1000):
        torch.manual_seed(0)
        model = small()
        lipvae.fit(
            model, digits(50), epochs=20, batch_size=50, lr=1e-2, warmup=warmup, progress=False
        )
        finals.append(float(model.weight_kl().detach()))
    assert finals[0] < finals[1]


def test_draws_depend_on_seed_and_index_alone() -> None:
    model = small().eval()
    first, again = model.draw(2, seed=5), model.ensemble(3, seed=5).members[2]
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    other = model.draw(1, seed=5)
    assert not torch.equal(first.decoder[0].weight, other.decoder[0].weight)
    assert torch.equal(first.trunk[1].weight, model.trunk[1].weight)


def test_no_two_tensors_of_a_draw_share_their_noise() -> None:
    model = small(initial_scale=0.2).eval()
    member = model.draw(0)
    starts = []
    for name, layer in model._layers():
        plain = member.decoder.get_submodule(name)
        for kind, mean, scale in layer.distributions():
            starts.append(((getattr(plain, kind) - mean) / scale).flatten()[:8])
    assert len(starts) == 4
    for i, start in enumerate(starts):
        for other in starts[:i]:
            assert (start - other).abs().max() > 0.1


def test_draws_have_the_posterior_s_moments() -> None:
    model = small(initial_scale=0.2).eval()
    draws = torch.stack([model.draw(s).decoder[0].weight.detach() for s in range(400)])
    layer = model.decoder[0]
    z = (draws.mean(0) - layer.weight.detach()) / (0.2 / 400**0.5)
    assert z.abs().max() < 4.5
    assert abs(float(draws.std(0).mean()) / 0.2 - 1) < 0.02
    assert abs(float(z.std()) - 1) < 4.5 * (2 * z.numel()) ** -0.5


def test_a_member_computes_what_the_model_does_under_that_draw() -> None:
    model = small().train()
    member = model.draw(0)
    for position, name in (("0", "0"), ("2", "2")):
        layer = getattr(model.decoder, position)
        plain = getattr(member.decoder, name)
        for kind, mean, scale in layer.distributions():
            layer._noise[kind] = ((getattr(plain, kind) - mean) / scale).detach()
    z = torch.randn(4, 2)
    torch.testing.assert_close(model.decode(z), member.decode(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_saves_and_loads(tmp_path, architecture: str) -> None:
    model = BayesianVAE((1, 8, 8), 2, architecture, prior_scale=0.5, reparameterization="local")
    lipvae.save(model, tmp_path / "m")
    loaded = lipvae.load(tmp_path / "m")
    assert isinstance(loaded, BayesianVAE)
    assert loaded.config == model.config
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.decode(x.flatten(1)[:, :2]), model.eval().decode(x.flatten(1)[:, :2]))
    ensemble = model.ensemble(2)
    lipvae.save(ensemble, tmp_path / "e")
    members = lipvae.load(tmp_path / "e")
    assert isinstance(members, Ensemble)
    assert not members.training
    for ours, theirs in zip(members.members, ensemble.members, strict=True):
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


def test_an_ensemble_may_hold_one_model_twice(tmp_path) -> None:
    model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
    lipvae.save(Ensemble([model, model]), tmp_path / "e")
    assert len(lipvae.load(tmp_path / "e")) == 2


def test_ensembles_check_their_members() -> None:
    model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
    other = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,), likelihood="gaussian")
    with pytest.raises(ValueError, match="at least one model"):
        Ensemble([])
    with pytest.raises(TypeError, match="must be lipvae models"):
        Ensemble([torch.nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="share input_shape and likelihood"):
        Ensemble([model, other])
    assert len(Ensemble([model, model, model]).ensemble(2)) == 2
    assert len(Ensemble([model]).ensemble(5)) == 1
