"""Deep ensembles, SWAG and SGHMC: each against the distribution that it should draw from."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import lipvae
from lipvae.posteriors import SWAG, _steps, fit_ensemble, fit_sghmc, fit_swag
from lipvae.posteriors.sghmc import sghmc_step


def small() -> lipvae.VAE:
    return lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))


def digits() -> torch.Tensor:
    return lipvae.data.load("digits").float()[:200]


def test_independent_members_differ_and_are_reproducible() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, histories = fit_ensemble(small, digits(), size=2, seed=1, epochs=1, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    second, _ = fit_ensemble(small, digits(), size=1, seed=2, epochs=1, progress=False)
    assert len(histories) == 2
    a, b = first.members
    assert not torch.equal(a.decoder[0].weight, b.decoder[0].weight)
    assert torch.equal(b.decoder[0].weight, second.members[0].decoder[0].weight)


def test_every_member_of_an_ensemble_has_a_seed() -> None:
    with pytest.raises(ValueError, match=r"below 2\*\*64, got seed 18446744073709551615, size 2"):
        fit_ensemble(small, digits(), size=2, seed=2**64 - 1, epochs=1, progress=False)


def test_swag_draws_have_the_mean_and_covariance_of_its_definition() -> None:
    model = small()
    swag = SWAG(model, rank=3)
    snapshots = []
    for _ in range(6):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        swag.update(model)
        snapshots.append(model.decoder[0].weight.detach().double().flatten().clone())
    states = torch.stack(snapshots)
    running = states.cumsum(0) / torch.arange(1, 7).unsqueeze(1)
    deviations = (states - running)[-3:]
    covariance = 0.5 * torch.diag(states.var(0, correction=0)) + deviations.T @ deviations / 4
    draws = torch.stack([swag.draw(s).decoder[0].weight.double().flatten() for s in range(1000)])
    error = covariance.diag().sqrt() / 1000**0.5
    assert ((draws.mean(0) - states.mean(0)).abs() < 4.5 * error).all()
    scale = covariance.diag().sqrt()
    difference = (draws.T.cov() - covariance) / torch.outer(scale, scale)
    assert difference.abs().max() < 4.5 * (2 / 1000) ** 0.5
    # The encoder is averaged, the same in all draws.
    assert torch.equal(swag.draw(0).loc.weight, swag.draw(1).loc.weight)


def test_swag_needs_two_snapshots() -> None:
    model = small()
    swag = SWAG(model)
    swag.update(model)
    with pytest.raises(RuntimeError, match="at least 2 snapshots, got 1"):
        swag.draw(0)
    with pytest.raises(ValueError, match=r"steps must be at least 2 \* interval = 8"):
        fit_swag(model, digits(), steps=7, interval=4)
    with pytest.raises(ValueError, match="must have the weights"):
        swag.update(lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16, 16)))


def test_swag_follows_training_and_is_reproducible() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        model = small()
        lipvae.fit(model, digits(), epochs=3, lr=1e-2, progress=False)
        swag = fit_swag(model, digits(), steps=20, interval=4, seed=3)
        assert swag.count == 5
        drawn.append(swag.ensemble(2, seed=1).members[1].state_dict())
    assert all(torch.equal(drawn[0][k], drawn[1][k]) for k in drawn[0])


def test_sghmc_has_the_posterior_as_its_stationary_distribution() -> None:
    # U = N theta^2 / 2, so the posterior is N(0, 1/N); 4,000 chains side by side.
    num_data, generator = 50, torch.Generator().manual_seed(0)
    theta = torch.full((4000,), 3.0, dtype=torch.float64)
    v = torch.zeros_like(theta)
    for _ in range(600):
        sghmc_step(
            [theta], [v], [theta], lr=1e-3, friction=0.1, num_data=num_data, generator=generator
        )
    assert abs(float(theta.mean())) < 4.5 * (1 / num_data / 4000) ** 0.5
    # The discretisation's own error is of the order lr / friction = 1%.
    assert abs(float(theta.var()) * num_data - 1) < 4.5 * (2 / 4000) ** 0.5 + 0.02


def test_sghmc_keeps_models_along_the_chain() -> None:
    torch.manual_seed(0)
    model = small()
    lipvae.fit(model, digits(), epochs=3, lr=1e-2, progress=False)
    start = model.decoder[0].weight.detach().clone()
    ensemble = fit_sghmc(model, digits(), num_draws=3, interval=5, burn_in=4, seed=2)
    weights = [m.decoder[0].weight for m in ensemble.members]
    assert not any(m.training for m in ensemble.members)
    assert not torch.equal(weights[0], start)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], model.decoder[0].weight)


def test_the_seed_reaches_order_and_noise_of_the_steps() -> None:
    torch.manual_seed(0)
    trained = small()
    chains = {}
    for seed in (1, 1, 2):
        model = copy.deepcopy(trained)
        # Without noise of its own, the chain's seed shows in the gradients alone.
        fit_sghmc(model, digits(), num_draws=1, interval=3, friction=1e-30, lr=1e-3, seed=seed)
        weight = model.decoder[0].weight.detach()
        assert torch.equal(chains.setdefault(seed, weight), weight)
    assert not torch.equal(chains[1], chains[2])


def test_the_seed_reaches_the_noise_of_sghmc(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def step(*_: object, generator: torch.Generator, **__: object) -> None:
        seen.append(float(torch.randn((), generator=generator)))

    monkeypatch.setattr("lipvae.posteriors.sghmc.sghmc_step", step)
    for seed in (1, 1, 2):
        fit_sghmc(small(), digits(), num_draws=1, interval=1, seed=seed)
    assert seen[0] == seen[1] != seen[2]


def test_the_prior_of_sghmc_pulls_as_its_scale_says() -> None:
    torch.manual_seed(0)
    trained = small()
    moved = {}
    for scale in (0.02, 0.04, 1e6):
        model = copy.deepcopy(trained)
        fit_sghmc(model, digits(), num_draws=1, interval=1, prior_scale=scale, lr=1e-4, seed=1)
        moved[scale] = model.decoder[0].weight.detach().double()
    # One step differs from that without a prior by -lr theta / (N s^2).
    theta = trained.decoder[0].weight.detach().double()
    for scale in (0.02, 0.04):
        pull = -1e-4 * theta / (200 * scale**2)
        torch.testing.assert_close(moved[scale] - moved[1e6], pull, rtol=0.01, atol=1e-6)


def test_random_weights_are_refused() -> None:
    model = lipvae.models.BayesianVAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
    with pytest.raises(TypeError, match="ordinary weights, got a BayesianVAE"):
        fit_sghmc(model, digits(), num_draws=1, interval=1)
    with pytest.raises(TypeError, match="must be a lipvae model"):
        SWAG(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"friction must be in \(0, 1\]"):
        fit_sghmc(small(), digits(), num_draws=1, interval=1, friction=2.0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        fit_swag(small(), digits(), steps=4, interval=1, momentum=1.0)


@pytest.mark.parametrize(("interval", "seen"), [(1, 4), (3, 5), (32, 6)])
def test_a_loss_that_is_not_finite_is_named_with_its_step(
    interval: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_steps, "check_interval", lambda _: interval)
    model = small()
    real, calls = model.elbo, []

    def spoilt(*arguments: object, **keywords: object) -> torch.Tensor:
        calls.append(1)
        return real(*arguments, **keywords) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(model, "elbo", spoilt)
    losses = _steps.losses(model, digits(), 32, 7, 0)
    assert [step for step, _ in itertools.islice(losses, seen)] == list(range(seen))
    with pytest.raises(lipvae.DivergenceError, match="nan at step 5; lower lr"):
        next(losses)
