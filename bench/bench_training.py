"""training: one optimiser step of the Lipschitz VAE, against the plain VAE of the same widths.

Both have made some steps before: the weights are what most of a training run has.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

import lipvae
from bench.harness import Case, Provider
from bench.peers.lipschitz_linear import SortLayer
from bench.settings import PUBLIC, Settings, peer
from bench.trained import BATCH, SIDE, STEPS, patches, stepping
from lipvae.nn import LipschitzLinear

PLAIN = "VAE"
HIDDEN = (512, 512)


def sort_based(model: lipvae.LipschitzVAE) -> lipvae.LipschitzVAE:
    """The same model with every linear layer of the peers' kind."""

    def replace(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, LipschitzLinear):
                assert child.bias is not None
                layer: nn.Module = SortLayer(child.weight.detach(), child.bias, child.lipschitz)
                if child.group_size is None:
                    layer.sort = nn.Identity()
                setattr(module, name, layer)
            else:
                replace(child)

    replace(model)
    return model


def training_case(architecture: str, hidden: tuple[int, ...] | None, settings: Settings) -> Case:
    options: dict[str, Any] = {"architecture": architecture, "hidden": hidden}
    plain = lipvae.VAE(**options).to(settings.device)
    model = lipvae.LipschitzVAE(**options).to(settings.device)
    images = patches(settings.device)
    steps = [stepping(plain, images), stepping(model, images)]
    for step in steps:
        for _ in range(STEPS):
            step()
    providers = [Provider(PLAIN, "limit", steps[0]), Provider(PUBLIC, "ours", steps[1])]
    skipped: dict[str, str] = {}
    if architecture == "fc":
        peer(
            providers, skipped, "LNets and deel-torchlip",
            lambda: stepping(sort_based(copy.deepcopy(model)), images),
        )  # fmt: skip
    shape = {"batch": BATCH, "D": SIDE**2, "m": plain.latent_dim}
    like = next(plain.parameters())
    return Case("training", f"{architecture}, Adam", shape, like.dtype, providers, skipped=skipped)


def cases(settings: Settings) -> Iterator[Case]:
    yield training_case("fc", HIDDEN, settings)
    if not settings.quick:
        yield training_case("conv", None, settings)
