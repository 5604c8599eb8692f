"""scores: what each score costs by itself, against decoding as many samples and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import lipvae
from bench.bench_training import HIDDEN
from bench.harness import Case, Provider
from bench.settings import COPY, PUBLIC, Settings
from bench.trained import patches, trained_vae
from lipvae.scores import SCORES
from lipvae.scoring import Scorer

DECODER = "the decoder alone"
# Images, their sides, samples, and models of the ensemble.
B, SIDE, K, DRAWS = 16, 28, 64, 8
CALIBRATION = 256
# One of each sort: scores of the same samples cost the same.
QUICK = ("hole_indicator", "waic", "likelihood_regret")
CONV = ("hole_indicator", "waic", "input_complexity", "typicality", "f_lip", "f_agg")


def decoding(model: lipvae.VAE) -> Callable[[], None]:
    """Decodes K samples of each image, in one call an image."""
    z = torch.randn(K, model.latent_dim, device=next(model.parameters()).device)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(B):
            model.decode(z)

    return run


def score_case(name: str, architecture: str, settings: Settings) -> Case:
    """One score of one model, or of one ensemble."""
    score = SCORES[name]
    shape = (1, SIDE, SIDE)
    x = patches(settings.device, shape, B, seed=1)
    hidden = HIDDEN if architecture == "fc" else None
    sizes = {"K": K, "B": B, "D": SIDE**2, "m": 10}
    model: lipvae.VAE
    if score.source == "draws":  # as many samples in all
        model = lipvae.BayesianVAE(shape, 10, architecture, hidden).to(settings.device).eval()
        sizes |= {"K": K // DRAWS, "S": DRAWS}
    else:
        model = trained_vae(settings.device, hidden, shape)
    scorer = Scorer(model, [name], num_samples=sizes["K"], num_draws=DRAWS)
    if score.calibrated:
        scorer.calibrate(patches(settings.device, shape)[:CALIBRATION], max_images=CALIBRATION)
    if score.source == "images":
        limit = Provider(COPY, "limit", x.clone)
    else:
        limit = Provider(DECODER, "limit", decoding(model))
    ours = Provider(PUBLIC, "ours", lambda: scorer(x))
    return Case(
        "scores", f"{name}, {architecture}", sizes, x.dtype, [limit, ours],
        work={"images": float(B)},
    )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    for name in QUICK if settings.quick else SCORES:
        yield score_case(name, "fc", settings)
    for name in () if settings.quick else CONV:
        yield score_case(name, "conv", settings)
