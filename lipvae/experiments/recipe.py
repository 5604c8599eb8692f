"""What the recipe does: one thing of the Lipschitz VAE or of its training changed at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lipvae.experiments.ablation import Ablation
from lipvae.experiments.compactness import DEFAULT_PAIRS as COMPACTNESS_PAIRS
from lipvae.experiments.settings import LIPSCHITZ, ModelSpec, fully_connected

NAME = "ablation-recipe"
TITLE = "What the recipe does"
DEFAULT_PAIRS = COMPACTNESS_PAIRS
PLOTS = False
AVERAGED = True  # over seeds
SEEDS = (3, 1)  # by default, and with --quick


def _changed(
    name: str,
    title: str,
    *,
    training: dict[str, Any] | None = None,
    times_epochs: int = 1,
    **options: Any,
) -> ModelSpec:
    spec = fully_connected(LIPSCHITZ, **options)
    return replace(
        spec,
        name=f"{spec.name}-{name}" if name else spec.name,
        title=title,
        training=training or {},
        times_epochs=times_epochs,
    )


ABLATION = Ablation(
    TITLE,
    "AUROC by what differs from the default: a fully connected Lipschitz VAE of M = 5, m = 10 and "
    "two hidden layers of 512, Bernoulli, Adam at 1e-3, batches of 128. What helps is to be chosen "
    "by KMNIST.",
    specs=(
        _changed("", "default"),
        _changed("narrow", "hidden layers of 256", hidden=(256, 256)),
        _changed("wide", "hidden layers of 1,024", hidden=(1024, 1024)),
        _changed("shallow", "one hidden layer", hidden=(512,)),
        _changed("deep", "four hidden layers", hidden=(512, 512, 512, 512)),
        _changed("groups-8", "GroupSort of 8", group_size=8),
        _changed("m-5", "m = 5", latent_dim=5),
        _changed("m-20", "m = 20", latent_dim=20),
        _changed(
            "continuous", "continuous Bernoulli likelihood", likelihood="continuous_bernoulli"
        ),
        _changed("lr-5e-4", "learning rate 5e-4", training={"lr": 5e-4}),
        _changed("lr-2e-3", "learning rate 2e-3", training={"lr": 2e-3}),
        _changed("batch-32", "batches of 32", training={"batch_size": 32}),
        _changed("batch-512", "batches of 512", training={"batch_size": 512}),
        _changed("warmup", "KL term warmed up for an epoch", training={"warmup": 1}),
        _changed("cosine", "cosine schedule", training={"schedule": "cosine"}),
        _changed("samples-8", "8 samples in training", training={"num_samples": 8}),
        _changed("longer", "three times the epochs", times_epochs=3),
    ),
    scores=(("hole_indicator", False), ("hole_indicator", True), ("is_log_likelihood", False)),
)
tasks, assemble, render = ABLATION.tasks, ABLATION.assemble, ABLATION.render
