"""LipschitzVAE with a Lipschitz decoder."""

from __future__ import annotations

import pytest
import torch

import lipvae
from lipvae.nn import certify, lipschitz_layers


def model_of(architecture: str, constant: float, **options: object) -> lipvae.LipschitzVAE:
    hidden = (16, 12) if architecture == "fc" else (8, 16, 32)
    return lipvae.LipschitzVAE(
        (1, 16, 8), 3, architecture, hidden, decoder_lipschitz=constant, **options
    )


@pytest.mark.parametrize("architecture", ["fc", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_shapes_are_those_of_the_ordinary_decoder(architecture: str, likelihood: str) -> None:
    model = model_of(architecture, 2.0, likelihood=likelihood)
    z = torch.randn(2, 5, 3)
    plain = lipvae.VAE((1, 16, 8), 3, architecture, model.hidden, likelihood)
    assert model.decode(z).shape == plain.decode(z).shape
    assert model.elbo(torch.rand(2, 1, 16, 8)).shape == (2,)


@pytest.mark.parametrize("architecture", ["fc", "conv"])
@pytest.mark.parametrize("constant", [1.0, 5.0])
def test_the_decoder_is_lipschitz_and_its_certificate_holds(
    architecture: str, constant: float
) -> None:
    model = model_of(architecture, constant)
    with torch.no_grad():  # trained weights lie on the ball's surface
        for layer in lipschitz_layers(model.decoder):
            layer.weight.mul_(4)
    certificate = certify(model.decoder, -3.0, 3.0, input_shape=(3,))
    assert constant * 0.999 <= certificate.lipschitz <= constant
    z = torch.empty(200, 3).uniform_(-3, 3)
    other = z + 0.3 * torch.randn(200, 3)
    with torch.no_grad():
        moved = (model.decode(z) - model.decode(other)).abs().amax(1)
    assert (moved <= constant * (z - other).abs().amax(1) * (1 + 1e-5)).all()
    assert certificate.contains(model.decoder(z)).all()


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_saves_loads_and_trains(tmp_path, architecture: str) -> None:
    model = lipvae.LipschitzVAE(
        (1, 8, 8), 2, architecture, (8, 16), lipschitz=1.0, decoder_lipschitz=3.0
    )
    images = lipvae.data.load("digits").float()[:200]
    history = lipvae.fit(model, images, epochs=4, batch_size=50, lr=1e-2, progress=False)
    assert history.train_elbo[-1] > history.train_elbo[0] + 1
    lipvae.save(model, tmp_path / "m")
    loaded = lipvae.load(tmp_path / "m")
    assert loaded.decoder_lipschitz == 3.0
    z = torch.randn(4, 2)
    assert torch.equal(loaded.decode(z), model.decode(z))
    assert set(lipvae.Scorer(loaded, num_samples=4)(images[:2])) >= {"hole_indicator"}


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="multiples of 4 for architecture 'conv', got"):
        lipvae.LipschitzVAE((1, 30, 28), 2, "conv", (8, 8, 16), decoder_lipschitz=1.0)
    with pytest.raises(ValueError, match="decoder_lipschitz must be positive"):
        lipvae.LipschitzVAE((1, 8, 8), 2, "fc", (8,), decoder_lipschitz=-1.0)
