"""training: one optimiser step of the Lipschitz VAE, against the plain VAE of the same widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import lipvae
from bench.bench_l1_ball import rows
from bench.harness import Case, Provider
from bench.peers.lipschitz_linear import SortLayer
from bench.settings import PUBLIC, Settings, peer
from lipvae.nn import LipschitzLinear, lipschitz_layers

PLAIN = "VAE"
BATCH = 128
HIDDEN = (512, 512)


def lipschitz_vae(settings: Settings, **options: Any) -> lipvae.LipschitzVAE:
    """A model whose rows lie outside the ball, as they do after some training."""
    model = lipvae.LipschitzVAE(**options).to(settings.device)
    with torch.no_grad():
        for layer in lipschitz_layers(model):
            shape = (layer.weight.shape[0], layer.weight[0].numel())
            layer.weight.copy_(rows("initial", shape, settings).view_as(layer.weight))
    return model


def sort_based(model: lipvae.LipschitzVAE) -> lipvae.LipschitzVAE:
    """The same model with every linear layer of the peers' kind."""

    def replace(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, LipschitzLinear):
                layer: nn.Module = SortLayer(child.weight.detach(), child.bias, child.lipschitz)
                if child.group_size is None:
                    layer.sort = nn.Identity()
                setattr(module, name, layer)
            else:
                replace(child)

    replace(model)
    return model


def step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward pass, backward pass and Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        loss = -model.elbo(x).mean()
        loss.backward()
        optimizer.step()

    return run


def training_case(architecture: str, hidden: tuple[int, ...] | None, settings: Settings) -> Case:
    x = (settings.rand(BATCH, 1, 28, 28) * 255).round() / 255
    options: dict[str, Any] = {"architecture": architecture, "hidden": hidden}
    plain = lipvae.VAE(**options).to(settings.device)
    providers = [
        Provider(PLAIN, "limit", step(plain, x)),
        Provider(PUBLIC, "ours", step(lipschitz_vae(settings, **options), x)),
    ]
    skipped: dict[str, str] = {}
    if architecture == "fc":
        peer(
            providers, skipped, "LNets and deel-torchlip",
            lambda: step(sort_based(lipschitz_vae(settings, **options)), x),
        )  # fmt: skip
    shape = {"batch": BATCH, "D": 784, "m": plain.latent_dim}
    return Case("training", f"{architecture}, Adam", shape, x.dtype, providers, skipped=skipped)


def cases(settings: Settings) -> Iterator[Case]:
    yield training_case("fc", HIDDEN, settings)
    if not settings.quick:
        yield training_case("conv", None, settings)
