"""Trains and scores what an experiment needs, each once, and keeps it on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lipvae
from lipvae._importance_pass import score_of_draws
from lipvae.calibration import Calibration
from lipvae.experiments import store, subsets
from lipvae.experiments.images import Images
from lipvae.experiments.settings import COLOUR, Budget, EnsembleSpec, ModelSpec
from lipvae.experiments.tasks import Task, run_all
from lipvae.models import MODELS, VAE, BayesianVAE, Ensemble
from lipvae.posteriors import fit_sghmc, fit_swag
from lipvae.scores import SCORES, confounds, ensembles
from lipvae.scores.regret import regret
from lipvae.scoring import Scorer

# Seconds on two cores: a training step of 128 images, and 128 samples of one image decoded.
_STEP = {"grey": 0.035, "colour": 0.047}
_DECODE = {"grey": 0.004, "colour": 0.009}
_CODE_LENGTHS = 0.003

# Steps of the group "refined". More change little: docs/results.md.
REFINE = 2

# SWAG's snapshots in one more pass over the training images.
_SNAPSHOTS = 20

# Groups of scores, by what they cost: one pass; a pass of each draw; gradient steps; no model.
# "statistics" is the part of "single" that needs no code lengths and no training images, and
# "refined" the same of posteriors whose means went up the ELBO first. "draws" goes by the models'
# log-likelihoods, for which few samples do; in "ensemble" each takes as many as a model alone.
SINGLE = tuple(
    name
    for name, score in SCORES.items()
    if score.source in ("statistics", "evidence") and name != "likelihood_regret"
)
STATISTICS = tuple(name for name in SINGLE if SCORES[name].source == "statistics")
DRAWS = tuple(score.name for score in ensembles.SCORES)
GROUPS: dict[str, tuple[str, ...]] = {
    "single": SINGLE,
    "draws": tuple(name for name in DRAWS if SCORES[name].of == "is_log_likelihood"),
    "regret": ("likelihood_regret",),
    "confounds": tuple(score.name for score in confounds.SCORES),
    "statistics": STATISTICS,
    "refined": STATISTICS,
    "ensemble": DRAWS,
    "ensemble-refined": DRAWS,
}

Spec = ModelSpec | EnsembleSpec


class Runner:
    """Models and scores of one folder.

    Args:
        out: the folder. What is there is taken, if it has the same configuration.
        budget: how much to spend.
        images: the data.
        device: where to compute.
        report: takes a line of text for every step.
        progress: whether `lipvae.fit` shows its bar.
    """

    def __init__(
        self,
        out: Path,
        budget: Budget,
        images: Images,
        device: torch.device | str = "cpu",
        report: Callable[[str], None] = print,
        progress: bool = False,
    ) -> None:
        self.out, self.budget, self.images = out, budget, images
        self.device, self.report, self.progress = device, report, progress

    def run(self, tasks: Iterable[Task]) -> float:
        """Runs the tasks that are not done, each result once; returns the seconds spent."""
        return run_all(tasks, self.report)

    # Models.

    def model_key(self, spec: Spec, inliers: str, seed: int) -> str:
        """The name of a model's file."""
        if isinstance(spec, EnsembleSpec):
            parts = [self.model_key(spec.base, inliers, s) for s in spec.seeds(seed)]
            configuration: dict[str, Any] = {"way": spec.way, "of": parts}
            if spec.way != "independent":
                configuration["S"] = self.budget.num_draws
            return store.key_of(f"{inliers}-{spec.name}-s{seed}", configuration)
        configuration = {
            "kind": spec.kind,
            "arguments": spec.arguments(self.images.shape(inliers)),
            "training": spec.training,
            "inliers": inliers,
            "epochs": self._epochs(spec, inliers),
            "seed": seed,
        }
        if spec.radius is not None:
            configuration["radius"] = spec.radius
        return store.key_of(f"{inliers}-{spec.name}-s{seed}", configuration)

    def _epochs(self, spec: ModelSpec, inliers: str) -> int:
        return spec.times_epochs * self.budget.epochs(inliers)

    def _model_path(self, spec: Spec, inliers: str, seed: int) -> Path:
        return self.out / "models" / f"{self.model_key(spec, inliers, seed)}.safetensors"

    def train_task(self, spec: ModelSpec, inliers: str, seed: int) -> Task:
        """Trains a model."""
        path = self._model_path(spec, inliers, seed)
        steps = self._epochs(spec, inliers) * self.images.train_count(inliers) / 128
        cost = steps * _STEP[_kind(inliers)] * (1.3 if spec.kind == "BayesianVAE" else 1.0)
        return Task(
            str(path),
            f"train {spec.title} on {inliers}, seed {seed}",
            cost,
            path.with_suffix(".json").exists,
            lambda: self._train(path, spec, inliers, seed),
        )

    def _train(self, path: Path, spec: ModelSpec, inliers: str, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = MODELS[spec.kind](**spec.arguments(self.images.shape(inliers)))
        model = spec.with_radius(made)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A run that is interrupted goes on from its last epoch.
        checkpoint = path.with_suffix(".checkpoint")
        start = time.perf_counter()
        history = lipvae.fit(
            model,
            self.images.train(inliers),
            epochs=self._epochs(spec, inliers),
            device=self.device,
            seed=seed,
            checkpoint=checkpoint,
            resume=True,
            progress=self.progress,
            **spec.training,
        )
        lipvae.save(model, path)
        record = {
            "model": spec.name,
            "title": spec.title,
            "kind": spec.kind,
            "config": model.config,
            "inliers": inliers,
            "seed": seed,
            "parameters": sum(p.numel() for p in model.parameters()),
            "history": history.to_dict(),
            "seconds": time.perf_counter() - start,
            "device": str(next(model.parameters()).device),
        }
        store.write_json(path.with_suffix(".json"), record)
        checkpoint.unlink(missing_ok=True)

    def ensemble_tasks(self, spec: EnsembleSpec, inliers: str, seed: int) -> list[Task]:
        """Trains what an ensemble is made of, and draws its models."""
        tasks = [self.train_task(spec.base, inliers, s) for s in spec.seeds(seed)]
        if spec.way in ("swag", "sghmc"):
            path = self._model_path(spec, inliers, seed)
            steps = self.images.train_count(inliers) / 128
            task = Task(
                str(path),
                f"draw {spec.title} on {inliers}, seed {seed}",
                steps * _STEP[_kind(inliers)],
                path.exists,
                lambda: self._draw(path, spec, inliers, seed),
            )
            tasks.append(task)
        return tasks

    def _draw(self, path: Path, spec: EnsembleSpec, inliers: str, seed: int) -> None:
        """One more pass over the training images, in which SWAG or SGHMC draws models."""
        model, data = self.model(spec.base, inliers, seed), self.images.train(inliers)
        draws = self.budget.num_draws
        steps = max(len(data) // 128, _SNAPSHOTS, draws)
        if spec.way == "swag":
            swag = fit_swag(model, data, steps=steps, interval=steps // _SNAPSHOTS, seed=seed)
            drawn = swag.ensemble(draws, seed)
        else:
            drawn = fit_sghmc(model, data, num_draws=draws, interval=steps // draws, seed=seed)
        lipvae.save(drawn, path)

    def model(self, spec: ModelSpec, inliers: str, seed: int) -> VAE:
        """A model that has been trained."""
        model = lipvae.load(self._model_path(spec, inliers, seed), self.device)
        assert isinstance(model, VAE)
        return spec.with_radius(model)

    def ensemble(self, spec: EnsembleSpec, inliers: str, seed: int) -> VAE | Ensemble:
        """An ensemble whose parts are there; a Bayesian model draws its own."""
        if spec.way == "independent":
            return Ensemble([self.model(spec.base, inliers, s) for s in spec.seeds(seed)])
        if spec.way == "bayes":
            return self.model(spec.base, inliers, seed)
        return lipvae.load(self._model_path(spec, inliers, seed), self.device)

    def _models(self, spec: EnsembleSpec) -> int:
        """Of an ensemble."""
        return spec.members if spec.way == "independent" else self.budget.num_draws

    def record(self, spec: ModelSpec, inliers: str, seed: int) -> dict[str, Any] | None:
        """What is known of a model's training; None before it."""
        path = self._model_path(spec, inliers, seed).with_suffix(".json")
        return store.read_json(path) if path.exists() else None

    # Scores.

    def _scores_path(
        self, group: str, spec: Spec | None, inliers: str, seed: int, images: str
    ) -> Path:
        budget = self.budget
        configuration: dict[str, Any] = {"scores": GROUPS[group], "images": images}
        configuration["count"] = budget.images
        if group == "single":
            configuration |= {"K": budget.num_samples, "known": budget.calibration_images}
        elif group == "statistics":
            configuration["K"] = budget.num_samples
        elif group == "draws":
            configuration |= {"K": budget.draw_samples, "S": budget.num_draws}
        elif group == "refined" or group.startswith("ensemble"):
            configuration |= {"K": budget.num_samples, "refine": _steps(group)}
        elif group == "regret":
            configuration |= {"count": budget.regret_images, **vars(budget.regret)}
        if spec is None:
            folder, label = f"of-{inliers}-shape", images
        else:
            folder, label = self.model_key(spec, inliers, seed), images
        name = store.key_of(f"{label}-{group}", configuration)
        return self.out / "scores" / folder / f"{name}.safetensors"

    def score_task(
        self, group: str, spec: Spec | None, inliers: str, seed: int, images: str
    ) -> Task:
        """Scores a test set by a group of scores."""
        path = self._scores_path(group, spec, inliers, seed, images)
        budget = self.budget
        count = budget.images or 10000
        decode = _DECODE[_kind(inliers)]
        models = self._models(spec) if isinstance(spec, EnsembleSpec) else 1
        cost = {
            "single": count * (budget.num_samples / 128 * decode + _CODE_LENGTHS),
            "draws": count * budget.num_draws * budget.draw_samples / 128 * decode,
            "regret": 8
            * decode
            * budget.regret.pairs
            * budget.regret.steps
            * budget.regret_images
            / 128,
            "confounds": 0.1,
            "statistics": count * budget.num_samples / 128 * decode,
            "refined": count * (budget.num_samples / 128 + REFINE) * decode,
            "ensemble": models * count * budget.num_samples / 128 * decode,
            "ensemble-refined": models * count * (budget.num_samples / 128 + REFINE) * decode,
        }[group]
        by = "no model" if spec is None else f"{spec.title} of {inliers}, seed {seed}"
        return Task(
            str(path),
            f"score {images} ({group}) by {by}",
            cost,
            path.exists,
            lambda: self._score(path, group, spec, inliers, seed, images),
        )

    def _score(
        self, path: Path, group: str, spec: Spec | None, inliers: str, seed: int, images: str
    ) -> None:
        budget = self.budget
        count = budget.regret_images if group == "regret" else budget.images
        x = self.images.test(images, count, inliers)
        start = time.perf_counter()
        if spec is None:
            found = {score.name: score.statistic(x) for score in confounds.SCORES}
        else:
            if group == "regret":
                assert isinstance(spec, ModelSpec)
                model = self.model(spec, inliers, seed)
                x = x.to(self.device)
                found = {"likelihood_regret": regret(model, x, seed, budget.regret)}
            else:
                scorer = self._scorer(group, spec, inliers, seed)
                score = _of_draws if isinstance(spec, EnsembleSpec) else Scorer.__call__
                parts = [score(scorer, part.to(self.device)) for part in x.split(512)]
                found = {name: torch.cat([p[name] for p in parts], -1) for name in parts[0]}
        content = {"group": group, "seconds": time.perf_counter() - start, "images": len(x)}
        store.write_tensors(path, {name: value.cpu() for name, value in found.items()}, content)

    def _scorer(self, group: str, spec: Spec, inliers: str, seed: int) -> Scorer:
        budget = self.budget
        names, refine = GROUPS[group], _steps(group)
        if isinstance(spec, EnsembleSpec):
            return Scorer(
                self.ensemble(spec, inliers, seed),
                names,
                budget.num_samples,
                seed,
                num_draws=self._models(spec),
                refine=refine,
            )
        model = self.model(spec, inliers, seed)
        if group == "draws":
            assert isinstance(model, BayesianVAE)
            return Scorer(model, names, budget.draw_samples, seed, num_draws=budget.num_draws)
        scorer = Scorer(model, names, budget.num_samples, seed, refine=refine)
        if group in ("statistics", "refined"):
            return scorer
        name = f"K{budget.num_samples}-n{budget.calibration_images}.safetensors"
        path = self.out / "calibrations" / f"{self.model_key(spec, inliers, seed)}-{name}"
        if path.exists():
            scorer.calibration = Calibration.load(path, self.device)
        else:
            scorer.calibrate(self.images.train(inliers), budget.calibration_images)
            assert scorer.calibration is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            scorer.calibration.save(path)
        return scorer

    def scores(
        self, group: str, spec: Spec | None, inliers: str, seed: int, images: str
    ) -> dict[str, Tensor] | None:
        """The scores of a test set, float64 [N] by name; None before they are computed."""
        path = self._scores_path(group, spec, inliers, seed, images)
        return store.read_tensors(path) if path.exists() else None

    def score_record(
        self, group: str, spec: Spec | None, inliers: str, seed: int, images: str
    ) -> dict[str, Any] | None:
        """Seconds and number of images of a scoring; None before it."""
        path = self._scores_path(group, spec, inliers, seed, images)
        return store.read_content(path) if path.exists() else None


def group_of(score: str) -> str:
    """The group that a score of Table 2 is computed with."""
    return next(group for group, names in GROUPS.items() if score in names)


def _of_draws(scorer: Scorer, x: Tensor) -> dict[str, Tensor]:
    """What several models say, [N], and what each of them says, [S, N], from one pass of each."""
    draws = scorer.statistics_of_draws(x)
    each = {SCORES[name].of for name in DRAWS}
    tables = {name: torch.stack([getattr(draw, name) for draw in draws]) for name in each}
    return tables | {name: score_of_draws(SCORES[name], draws) for name in DRAWS}


def _steps(group: str) -> int:
    """Of refinement."""
    return REFINE if group.endswith("refined") else 0


def _kind(inliers: str) -> str:
    return "colour" if subsets.whole(inliers) in COLOUR else "grey"
