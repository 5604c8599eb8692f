"""What is zero in trained models, and so left out by the C++ kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import lipvae
from bench.trained import BATCH, density, stepping
from lipvae.nn import LipschitzLinear

HIDDEN = (512, 512)
LATENT_DIM = 10
CONSTANTS = (5.0, 20.0)
STEPS = (0, 20, 100, 1000)
# Samples of an image are decoded one after the other, six in a strip of the product.
IMAGES, SAMPLES, STRIP = 32, 48, 6


def weight_table(name: str) -> str:
    """Markdown: per cent of the projected weights that is not zero, after training on a set."""
    torch.manual_seed(0)
    x = lipvae.data.load(name).float()
    x = x[torch.randperm(len(x))[: len(x) // BATCH * BATCH]]
    heads: list[str] = []
    columns: list[tuple[float, ...]] = []
    for constant in CONSTANTS:
        torch.manual_seed(0)
        model = lipvae.LipschitzVAE(
            tuple(x.shape[1:]), LATENT_DIM, "fc", HIDDEN, lipschitz=constant
        )
        layers = [m for m in model.trunk.modules() if isinstance(m, LipschitzLinear)]
        step = stepping(model, x)
        rows = []
        for before, after in itertools.pairwise((0, *STEPS)):
            for _ in range(after - before):
                step()
            rows.append([density(layer) for layer in layers])
        heads += [f"M = {constant:g}: {_size(layer)}" for layer in layers]
        columns += zip(*rows, strict=True)
    lines = [f"| steps | {' | '.join(heads)} |", "| ---: |" + " ---: |" * len(heads)]
    for steps, row in zip(STEPS, zip(*columns, strict=True), strict=True):
        lines.append(f"| {steps:,} | {' | '.join(f'{100 * share:.3g}' for share in row)} |")
    return "\n".join(lines)


def _size(layer: nn.Module) -> str:
    if isinstance(layer, nn.ConvTranspose2d):
        return f"{layer.in_channels} to {layer.out_channels} channels"
    return f"{layer.in_features:,} → {layer.out_features:,}"


def active(model: lipvae.VAE, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each layer of the decoder behind a ReLU, and which of its inputs are not zero.

    Args:
        model: a model whose decoder has ReLUs; another yields nothing.
        x: [B, C, H, W].

    Yields:
        The layer's size in words, and bool [K, B, units].
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        posterior = model.encode(x)
        noise = torch.randn(SAMPLES, *posterior.loc.shape, generator=generator)
        h = (posterior.loc + posterior.scale * noise).flatten(0, 1)
        rectified = False
        for layer in model.decoder:
            if rectified and isinstance(layer, nn.Linear | nn.ConvTranspose2d):
                yield _size(layer), (h != 0).unflatten(0, (SAMPLES, len(x))).flatten(2)
                rectified = False
            rectified = rectified or isinstance(layer, nn.ReLU)
            h = layer(h)


def shares(on: Tensor) -> tuple[float, float, float]:
    """Of bool [K, B, units]: true for a sample, for one of six samples, for one of six images."""

    def united(rows: Tensor) -> float:
        whole = rows[: len(rows) // STRIP * STRIP]
        return float(whole.unflatten(0, (-1, STRIP)).any(1).float().mean())

    return float(on.float().mean()), united(on), united(on.transpose(0, 1))


def unit_table(models: Sequence[tuple[Path, str]]) -> str:
    """Markdown: per cent of the decoder's units that a ReLU leaves, of files and their data."""
    lines = [
        "| model | layer | a sample | six samples | six images |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for path, name in models:
        model = lipvae.load(path)
        if not isinstance(model, lipvae.VAE):
            raise ValueError(f"{path} holds an ensemble; name one model")
        x = lipvae.data.load(name, "test").float()[:IMAGES]
        label = f"{name}, {model.architecture}"
        for layer, on in active(model, x):
            cells = " | ".join(f"{100 * share:.0f}" for share in shares(on))
            lines.append(f"| {label} | {layer} | {cells} |")
            label = ""
    return "\n".join(lines)
