"""What an experiment is made of: pairs of data sets, models, and how much is spent on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lipvae.data import NAMES
from lipvae.data.registry import REGISTRY
from lipvae.experiments import subsets
from lipvae.models import VAE
from lipvae.nn.sequential import lipschitz_layers
from lipvae.scores.regret import RegretSettings

COLOUR = ("cifar10", "svhn")
# Sets with a training split of their own.
LEARNT = subsets.LABELLED


@dataclass(frozen=True)
class Pair:
    """A data set to learn and one to tell from it."""

    inliers: str
    outliers: str

    @property
    def name(self) -> str:
        """As the command line writes it."""
        return f"{self.inliers}:{self.outliers}"

    @property
    def title(self) -> str:
        """As tables write it."""
        lifted = self.inliers in COLOUR and self.outliers not in COLOUR
        names = f"{subsets.title(self.inliers)} vs {subsets.title(self.outliers)}"
        return f"{names}{' (lifted to colour)' if lifted else ''}"


PAPER_PAIRS = (
    Pair("fashion-mnist", "mnist"),
    Pair("mnist", "fashion-mnist"),
    Pair("cifar10", "svhn"),
)
FURTHER_PAIRS = (
    Pair("fashion-mnist", "kmnist"),
    Pair("mnist", "kmnist"),
    *(Pair("cifar10", grey) for grey in ("mnist", "fashion-mnist", "kmnist")),
)
GREY_PAIRS = PAPER_PAIRS[:2]


def parse_pairs(text: str | None, default: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs of an option.

    Args:
        text: "all", "paper", or INLIERS:OUTLIERS joined by commas; None for the default. A set
            may be cut to some classes: "mnist-01:mnist-23456789".
        default: where `text` is None.

    Raises:
        ValueError: for anything else.

    Example:
        >>> [pair.title for pair in parse_pairs("cifar10:mnist", ())]
        ['cifar10 vs mnist (lifted to colour)']
    """
    if text is None:
        return tuple(default)
    if text == "all":
        return PAPER_PAIRS + FURTHER_PAIRS
    if text == "paper":
        return PAPER_PAIRS
    pairs = []
    for part in text.split(","):
        inliers, colon, outliers = part.strip().partition(":")
        learnt, other = subsets.whole(inliers), subsets.whole(outliers)
        if not colon or learnt not in LEARNT or other not in NAMES or inliers == outliers:
            raise ValueError(
                "pairs must be all, paper, or INLIERS:OUTLIERS joined by commas, with inliers "
                f"among {', '.join(LEARNT)} and outliers among {', '.join(NAMES)}; got {part!r}"
            )
        if learnt == "digits" and other in REGISTRY:
            raise ValueError(f"pairs must not have outliers larger than 8x8 digits, got {part!r}")
        if learnt not in COLOUR and other in COLOUR:
            raise ValueError(f"pairs must not have colour outliers of grey inliers, got {part!r}")
        pairs.append(Pair(inliers, outliers))
    return tuple(dict.fromkeys(pairs))


@dataclass(frozen=True)
class ModelSpec:
    """A model, up to the data that it learns.

    Attributes:
        name: short, for files and tables.
        title: for tables.
        kind: key in `lipvae.models.MODELS`.
        options: arguments besides those of the data.
        training: arguments of `lipvae.fit` besides those of the budget.
        times_epochs: how often it makes the budget's passes over the training images.
        radius: of each Lipschitz layer, whatever it was initialised for; None for its own. One that
            no weights reach takes the constraint away, and nothing else.
    """

    name: str
    title: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    times_epochs: int = 1
    radius: float | None = None

    def arguments(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        """The model's arguments for images of a shape: m = 10 for grey ones, 70 for colour."""
        colour = shape[0] == 3
        return {
            "input_shape": list(shape),
            "latent_dim": 70 if colour else 10,
            "likelihood": "discretized_logistic" if colour else "bernoulli",
        } | self.options

    def with_radius(self, model: VAE) -> VAE:
        """The model, whose layers got this radius."""
        if self.radius is not None:
            for layer in lipschitz_layers(model):
                layer.lipschitz = self.radius
        return model


VANILLA = ModelSpec("vanilla", "VAE", "VAE")
LIPSCHITZ = ModelSpec("lipschitz", "Lipschitz VAE", "LipschitzVAE")
SPHERE = ModelSpec(
    "sphere-m=3",
    "Hyperspherical VAE, m = 3",
    "HypersphericalVAE",
    {"latent_dim": 3, "architecture": "fc"},
)
BAYESIAN = ModelSpec("bayesian", "Bayesian VAE", "BayesianVAE", training={"warmup": 1})


def fully_connected(spec: ModelSpec, **options: Any) -> ModelSpec:
    """A model of dense layers, of which many can be trained, with other options."""
    options = spec.options | {"architecture": "fc"} | options
    return replace(spec, name=f"{spec.name}-fc", options=options)


@dataclass(frozen=True)
class EnsembleSpec:
    """Several models of one kind.

    Attributes:
        base: what is trained.
        way: where the models come from: "independent" trainings; draws of the base's own weights,
            "bayes"; or draws around one trained base, "swag" and "sghmc".
        members: number of independent trainings; of the rest the budget says.
    """

    base: ModelSpec
    way: Literal["independent", "bayes", "swag", "sghmc"]
    members: int = 1

    @property
    def name(self) -> str:
        """Short, for files and tables."""
        count = f"-{self.members}" if self.way == "independent" else ""
        return f"{self.base.name}-{self.way}{count}"

    @property
    def title(self) -> str:
        """For tables."""
        ways = {
            "independent": f"{self.members} trainings",
            "bayes": "draws",
            "swag": "SWAG",
            "sghmc": "SGHMC",
        }
        return f"{self.base.title}, {ways[self.way]}"

    def seeds(self, seed: int) -> range:
        """Of the trainings; ensembles of different seeds share none."""
        return range(self.members * seed, self.members * (seed + 1))


def lipschitz_spec(lipschitz: float, decoder: float | None = None) -> ModelSpec:
    """A Lipschitz VAE with given constants of the encoder and, unless None, of the decoder."""
    name, title = f"lipschitz-m={lipschitz:g}", f"Lipschitz VAE, M = {lipschitz:g}"
    options = {"lipschitz": float(lipschitz)}
    if decoder is not None:
        name += f"-decoder={decoder:g}"
        title += f", decoder's = {decoder:g}"
        options["decoder_lipschitz"] = float(decoder)
    return ModelSpec(name, title, "LipschitzVAE", options)


@dataclass(frozen=True)
class Budget:
    """How much is spent.

    Attributes:
        name: "quick" or "full".
        grey_epochs: passes over grey training images.
        colour_epochs: passes over colour training images.
        toy_epochs: passes over training images of a few classes.
        images: of each test set that are scored, a fixed random choice; None for all.
        num_samples: K of the scores of one model.
        toy_images: as `images`, for Table 1, whose models are small.
        toy_samples: K on the sphere of Table 1, 10 in the paper.
        num_draws: S, models of the ensemble.
        draw_samples: K of each of them.
        calibration_images: training images for the scores that need some.
        regret_images: of each test set, for likelihood regret.
        regret: settings of likelihood regret.
    """

    name: str
    grey_epochs: int
    colour_epochs: int
    toy_epochs: int
    images: int | None
    num_samples: int
    toy_images: int | None
    toy_samples: int
    num_draws: int
    draw_samples: int
    calibration_images: int
    regret_images: int
    regret: RegretSettings

    def epochs(self, inliers: str) -> int:
        """Passes over the training images of a data set."""
        base, classes = subsets.parse(inliers)
        if classes:
            return self.toy_epochs
        return self.colour_epochs if base in COLOUR else self.grey_epochs

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def override(self, epochs: int | None, images: int | None, num_samples: int | None) -> Budget:
        """With what the command line sets itself."""
        changed: dict[str, Any] = {}
        if epochs is not None:
            changed |= {"grey_epochs": epochs, "colour_epochs": epochs, "toy_epochs": epochs}
        if images is not None:
            changed |= {
                "images": images,
                "toy_images": images,
                "regret_images": min(images, self.regret_images),
            }
        if num_samples is not None:
            changed |= {"num_samples": num_samples, "toy_samples": num_samples}
        return replace(self, **changed) if changed else self


# Table 2 with all pairs and one seed took 17 minutes on two idle cores of an Intel Xeon (AVX-512).
QUICK = Budget(
    name="quick",
    grey_epochs=3,
    colour_epochs=1,
    toy_epochs=10,
    images=1000,
    num_samples=64,
    toy_images=1000,
    toy_samples=10,
    num_draws=8,
    draw_samples=16,
    calibration_images=500,
    regret_images=128,
    regret=RegretSettings(steps=50, lr=0.1, pairs=1),
)
FULL = Budget(
    name="full",
    grey_epochs=10,
    colour_epochs=5,
    toy_epochs=30,
    images=1000,
    num_samples=128,
    toy_images=5000,
    toy_samples=10,
    num_draws=10,
    draw_samples=32,
    calibration_images=1000,
    regret_images=256,
    regret=RegretSettings(steps=100, lr=0.05, pairs=2),
)
