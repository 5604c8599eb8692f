"""Is it compactness? Encoders of different constants, free log-variances, and none at all."""

from __future__ import annotations

from dataclasses import replace

from lipvae.experiments.ablation import Ablation
from lipvae.experiments.settings import (
    GREY_PAIRS,
    LIPSCHITZ,
    VANILLA,
    Pair,
    fully_connected,
    lipschitz_spec,
)

NAME = "ablation-compactness"
TITLE = "What compactness does"
DEFAULT_PAIRS = (*GREY_PAIRS, Pair("fashion-mnist", "kmnist"), Pair("mnist", "kmnist"))
PLOTS = True
AVERAGED = True  # over seeds
SEEDS = (3, 1)  # by default, and with --quick

FREE = replace(
    fully_connected(LIPSCHITZ, constrain_log_variance=False),
    name="lipschitz-free-log-variance-fc",
    title="Lipschitz VAE, M = 5, free log-variance",
)
# Differs from M = 20 in the constraint alone; the plain VAE in activations and initialisation, too.
UNCONSTRAINED = replace(
    fully_connected(lipschitz_spec(20)),
    name="groupsort-fc",
    title="GroupSort VAE, no constant",
    radius=1e6,
)
ABLATION = Ablation(
    TITLE,
    "AUROC of each score, by the encoder; and the median L-infinity norm of the posterior means.",
    specs=(
        *(fully_connected(lipschitz_spec(constant)) for constant in (1, 2, 5, 20, 100)),
        FREE,
        UNCONSTRAINED,
        replace(fully_connected(VANILLA), title="VAE, no constant"),
    ),
    scores=(
        ("hole_indicator", False),
        ("hole_indicator", True),
        ("stds_of_lls", False),
        ("stds_of_lls", True),
        ("is_log_likelihood", False),
        ("f_agg", False),
    ),
    norms=True,
)
tasks, assemble = ABLATION.tasks, ABLATION.assemble
render, plot = ABLATION.render, ABLATION.plot
