"""``lipvae demo``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

import lipvae
from lipvae import data as sets
from lipvae.cli import _common as common
from lipvae.cli import _options as options
from lipvae.cli._outputs import check_folder
from lipvae.models import LipschitzVAE
from lipvae.report import draw_histograms, evaluate, latent_table, metrics_table
from lipvae.scoring import Scorer

# The digits that training never sees.
HELD_OUT = (8, 9)


@dataclass(frozen=True)
class Recipe:
    """A demonstration: the model, its training, and the images.

    Attributes:
        model: builds the model.
        epochs: passes over the training images.
        threads: of training; None for all. Threads that share very small layers mostly wait.
        train: what it learns from.
        inliers: name and images, of the same kind as the training images but not among them.
        outliers: images by name.
    """

    model: Callable[[], LipschitzVAE]
    epochs: int
    threads: int | None
    train: sets.ImageSet
    inliers: tuple[str, Tensor]
    outliers: dict[str, Tensor]


def _noise(n: int, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    return {
        "near-black noise": sets.near_black(n, shape).float(),
        "near-white noise": sets.near_white(n, shape).float(),
    }


def digits_recipe() -> Recipe:
    """scikit-learn's 8x8 digits 0 to 7; everything comes with scikit-learn."""
    train, test = sets.load("digits", "train"), sets.load("digits", "test")
    known = [digit for digit in range(10) if digit not in HELD_OUT]
    unseen = torch.cat([part.select(HELD_OUT).float() for part in (train, test)])
    return Recipe(
        model=lambda: LipschitzVAE((1, 8, 8), 10, "fc", (256, 256)),
        epochs=200,
        threads=1,
        train=train.select(known),
        inliers=("digits 0-7 (test)", test.select(known).float()),
        outliers={
            "digits 8 and 9": unseen,
            "photograph patches": sets.photo_patches(8, 500).float(),
            **_noise(500, (1, 8, 8)),
        },
    )


def fashion_recipe(count: int = 2000) -> Recipe:
    """Fashion-MNIST against MNIST; `count` test images of each set are scored."""
    first = slice(0, count)
    return Recipe(
        model=lambda: LipschitzVAE((1, 28, 28), 10, "conv"),
        epochs=3,
        threads=None,
        train=sets.load("fashion-mnist", "train"),
        inliers=("Fashion-MNIST (test)", sets.load("fashion-mnist", "test").take(first).float()),
        outliers={
            "MNIST (test)": sets.load("mnist", "test").take(first).float(),
            **_noise(500, (1, 28, 28)),
        },
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits_recipe,
    "fashion-mnist": fashion_recipe,
}


@common.user_errors
def demo(
    data: Annotated[
        str, typer.Option(help="digits (no download) or fashion-mnist (fetched).")
    ] = "digits",
    out: Annotated[Path, typer.Option(help="Folder for the model and the picture.")] = Path("out"),
    num_samples: options.NumSamples = 128,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Train a Lipschitz VAE on real images and show what its scores tell from them.

    With digits, the model learns scikit-learn's 8x8 digits 0 to 7. It then scores test images of
    the same digits, and four kinds of images that it has never seen: the digits 8 and 9, patches of
    scikit-learn's two photographs, near-black and near-white noise. With fashion-mnist it learns
    Fashion-MNIST and meets MNIST.

    **Examples**

    - `lipvae demo`
    - `lipvae demo --data fashion-mnist --out fashion`
    """
    if data not in RECIPES:
        raise ValueError(f"--data must be one of {', '.join(RECIPES)}, got {data!r}")
    where = common.pick_device(device)
    check_folder("--out", out)
    out.mkdir(parents=True, exist_ok=True)
    console = common.console()
    recipe = RECIPES[data]()
    torch.manual_seed(seed)  # of the initial weights
    model = recipe.model()
    if not quiet:
        console.print(
            f"Training {type(model).__name__} on {len(recipe.train)} images of "
            f"{recipe.train.name}, {recipe.epochs} epochs on {where}"
        )
    start = time.perf_counter()
    with _threads(recipe.threads):
        history = lipvae.fit(
            model,
            recipe.train,
            epochs=recipe.epochs,
            device=where,
            seed=seed,
            progress=common.progress_wanted(quiet),
        )
    trained = time.perf_counter()
    name, inliers = recipe.inliers
    scorer = Scorer(model, num_samples=num_samples, seed=seed)
    scored = {
        label: _score(scorer, label, images, quiet)
        for label, images in {name: inliers, **recipe.outliers}.items()
    }
    found = evaluate(name, scored.pop(name), scored)
    done = time.perf_counter()
    title = f"{type(model).__name__} trained on {data}, K = {num_samples}, seed {seed}"
    console.print(metrics_table(found, title))
    with torch.no_grad():
        observed = torch.cat([_means(model, images) for images in recipe.outliers.values()])
        means = {name: _means(model, inliers), "all outliers": observed}
    console.print(latent_table(model.certificate(), means))
    model_path = out / f"demo-{data}.safetensors"
    lipvae.save(model, model_path)
    picture = draw_histograms(found, out / f"demo-{data}.png", title)
    if not quiet:
        console.print(
            f"ELBO {history.train_elbo[-1]:.2f} nats; trained in {trained - start:.0f} s, scored "
            f"in {done - trained:.0f} s"
        )
    common.say(f"model: {model_path}")
    common.say(f"histograms: {picture}")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _score(scorer: Scorer, name: str, images: Tensor, quiet: bool) -> dict[str, Tensor]:
    parts: list[dict[str, Tensor]] = []
    with common.progress_bar(len(images), name, quiet) as bar:
        for batch in images.split(256):
            parts += scorer.stream([batch])
            bar.update(len(batch))
    return {score: torch.cat([part[score] for part in parts]) for score in scorer.names}


def _means(model: LipschitzVAE, images: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return torch.cat([model.encode(part.to(device)).loc.cpu() for part in images.split(1024)])
