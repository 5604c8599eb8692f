"""scoring: images a second through the Scorer, against an eager pipeline and the bare GEMMs.

Models have made some steps on patches of photographs, and score others: which units of a decoder
are active for an image follows from training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

import lipvae
from bench.bench_training import HIDDEN
from bench.harness import Case, Provider
from bench.peers import pipeline
from bench.settings import PUBLIC, Settings, peer
from bench.trained import patches, trained_vae
from lipvae._decoder_dtype import cpu_multiplies
from lipvae.scoring import Scorer

GEMM = "the decoder's GEMMs"
EAGER = "eager [K, B, D]"
WHOLE, CONVOLUTIONAL = "fc", "conv"
LOW = "lipvae, bfloat16 decoder"

# Images by (channels, side): D = 64, 784 and 3072.
BASE = {"K": 128, "B": 32, "channels": 1, "side": 28, "m": 10}
GROWTH = [
    *({"K": k} for k in (16, 128, 512, 2048)),
    *({"B": b} for b in (1, 8, 256)),
    *({"channels": c, "side": s} for c, s in ((1, 8), (3, 32))),
    *({"m": m} for m in (2, 70, 500)),
]
# Logits that an eager pipeline may materialise here; above this it is left out.
EAGER_NUMBERS = 60_000_000


def decoder_products(model: lipvae.VAE, count: int) -> Callable[[], None]:
    """The decoder's matrix products for `count` latent points, in one product a layer.

    A transposed convolution is the product of its input's pixels with all taps.
    """
    weights, rows = [], []
    device = next(model.parameters()).device
    x = torch.zeros(1, model.latent_dim, device=device)
    for layer in model.decoder:
        if isinstance(layer, nn.Linear):
            weights.append(layer.weight.detach().t())
            rows.append(count)
        elif isinstance(layer, nn.ConvTranspose2d):
            weights.append(layer.weight.detach().flatten(1))
            rows.append(count * x[0, 0].numel())
        x = layer(x).detach()
    sizes = list(zip(rows, weights, strict=True))
    inputs = [torch.rand(n, w.shape[0], device=device) for n, w in sizes]
    outputs = [torch.empty(n, w.shape[1], device=device) for n, w in sizes]

    def run() -> None:
        for a, w, out in zip(inputs, weights, outputs, strict=True):
            torch.mm(a, w, out=out)

    return run


def repeated(run: Callable[[], None], times: int) -> Callable[[], None]:
    """Calls `run` again and again."""

    def all_of_them() -> None:
        for _ in range(times):
            run()

    return all_of_them


def scoring_case(
    variant: str, changed: dict[str, int], settings: Settings, *, pyod: bool = False
) -> Case:
    """The base sizes, some of them changed."""
    sizes = BASE | changed
    k, b, side = sizes["K"], sizes["B"], sizes["side"]
    input_shape = (sizes["channels"], side, side)
    d = sizes["channels"] * side * side
    fc = variant != CONVOLUTIONAL
    model = trained_vae(settings.device, HIDDEN if fc else None, input_shape, sizes["m"])
    x = patches(settings.device, input_shape, b, seed=1)
    scorer = Scorer(model, num_samples=k)
    providers = [
        Provider(GEMM, "limit", repeated(decoder_products(model, k), b)),
        Provider(PUBLIC, "ours", lambda: scorer(x), memory=True),
    ]
    skipped: dict[str, str] = {}
    if variant in (WHOLE, CONVOLUTIONAL):
        if settings.cuda or cpu_multiplies(torch.bfloat16):
            low = Scorer(model, num_samples=k, decoder_dtype=torch.bfloat16)
            providers.append(Provider(LOW, "ours", lambda: low(x), memory=True))
        else:
            skipped[LOW] = "this CPU has no products of bfloat16"
    if k * b * d <= EAGER_NUMBERS:
        peer(
            providers, skipped, EAGER,
            lambda: lambda: pipeline.eager_scores(model, x, k), memory=True,
        )  # fmt: skip
    else:
        skipped[EAGER] = f"{k * b * d:.1e} logits at once are too many for this run"
    if pyod and not settings.cuda:

        def detector() -> Callable[[], object]:
            inliers = patches(settings.device, input_shape)[:256]
            fitted = pipeline.pyod_vae(inliers, sizes["m"], HIDDEN)
            flat = x.flatten(1).numpy()
            return lambda: fitted.decision_function(flat)

        peer(providers, skipped, "PyOD VAE, reconstruction error", detector)
    shape = {"K": k, "B": b, "D": d, "m": sizes["m"]}
    return Case(
        "scoring", variant, shape, x.dtype, providers, skipped=skipped, work={"images": float(b)}
    )


def cases(settings: Settings) -> Iterator[Case]:
    yield scoring_case(WHOLE, {"B": 64 if settings.quick else 128}, settings, pyod=True)
    yield scoring_case(CONVOLUTIONAL, {"K": 16, "B": 8} if settings.quick else {}, settings)
    for changed in GROWTH[1:3] if settings.quick else GROWTH:
        yield scoring_case("fc, growth", changed, settings)
