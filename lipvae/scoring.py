"""All scores of an input from one encode and one decode pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lipvae import scores as definitions
from lipvae._convolutions import repeatable_convolutions
from lipvae._decoder_dtype import check_decoder_dtype
from lipvae._evaluation import evaluating
from lipvae._importance_pass import ImportancePass, Noise, noise_of, score_of_draws
from lipvae._packed_model import PackedModel
from lipvae._validate import check_count, check_unit_interval, describe
from lipvae._walk import first_parameter
from lipvae.batches import Images, as_input, checked, generator
from lipvae.calibration import Calibration, fingerprint
from lipvae.models import VAE, BayesianVAE, Ensemble
from lipvae.ops._common import without_autocast
from lipvae.refinement import antithetic_noise
from lipvae.scores import Evidence
from lipvae.statistics import ImportanceStatistics

NOISES = ("independent", "sobol")

# Images that an accelerator decodes at once, TILE samples of each.
DEFAULT_BLOCK = 64

# Draws of a Bayesian model's weights.
DEFAULT_DRAWS = 8


class Scorer:
    r"""Scores inputs by how out-of-distribution they are: higher is more so.

    One encoder pass gives q(z|x), K samples of it go through the decoder once, and every score is
    a statistic of their importance weights, equations (5) and (6):

    ====================== ======================================== ==============================
    score                  definition                               raw statistic is high for
    ====================== ======================================== ==============================
    ``hole_indicator``     std over k of log p(x|z_k)               outliers
    ``stds_of_lls``        std over k of log w_k                    outliers
    ``is_log_likelihood``  log K - logsumexp log w_k                inliers; negated
    ``elbo``               - mean of log w_k                        inliers; negated
    ``log_likelihood``     - mean of log p(x|z_k)                   inliers; negated
    ``kl``                 mean of log q(z_k|x) - log p(z_k)        outliers
    ``ess``                - (sum of w)^2 / sum of w^2              inliers; negated
    ====================== ======================================== ==============================

    An ensemble, or a Bayesian model by `num_draws` draws of its weights, gives the scores of
    equation (7) over its models theta_s, from one such pass of each:

    =========================== ==================================== =============================
    score                       definition                           raw statistic is high for
    =========================== ==================================== =============================
    ``waic``                    var - mean over s of log p(x|theta)  inliers; negated
    ``disagreement``            - 1 / sum of v_s^2                   inliers; negated
    ``entropy``                 sum of v_s log v_s                   inliers; negated
    ``ensemble_stds_of_lls``    std over s of log p(x|theta_s)       outliers
    ``ensemble_log_likelihood`` log S - logsumexp log p(x|theta_s)   inliers; negated
    ``mean_hole_indicator``     mean over s of the hole indicator    outliers
    ``mean_stds_of_lls``        mean over s of stds of LLs over k    outliers
    =========================== ==================================== =============================

    By name, or with ``scores="all"``, there are also ``input_complexity``, ``likelihood_regret``,
    the confounds ``pixel_entropy``, ``pixel_mean`` and ``nonzero_pixels``, and, after
    :meth:`calibrate`, ``typicality``, ``f_lip`` and ``f_agg``; :mod:`lipvae.scores` defines them.

    Samples stream through in tiles, so memory does not grow with K. Where the decoder ends in a
    linear layer, that layer and the log-likelihood are one op and the logits are never stored.

    Weights are projected, and on a CPU rearranged, by the first call and kept for the next ones
    until the model's weights change, which torch counts. It does not see changes that are made
    through ``weight.data``: after those, make another scorer. Threads may share a scorer, and
    weights may be replaced while it runs: a call that begins afterwards has the new ones.

    An encoder serves all inputs and fits none of them best. With `refine` steps of natural
    gradient each input's mean first goes up its own ELBO, and the scores are those of the posterior
    found there: :mod:`lipvae.refinement`. On a Lipschitz VAE that took the inliers' heavy tail off
    the hole indicator; docs/results.md shows where it helps and where it does not. A step decodes
    80 samples, 16 of them with a gradient. ``f_lip`` and ``f_agg``, which compare the encoder's
    answer to those for training images, and ``likelihood_regret``, which measures what the encoder
    lost, keep the encoder's posterior.

    With ``noise="sobol"`` the samples fill the posterior evenly (randomised quasi-Monte Carlo). It
    costs nothing, and a score then hangs less on the seed: docs/results.md.

    The decoder does most of the work. With `decoder_dtype` its weights and activations are rounded
    to 16 bits, for hardware whose products are faster there; docs/performance.md has what that does
    to the scores. Encoder, samples, densities and sums keep their precision.

    A score depends on (model, x, seed, num_samples, refine, noise, decoder_dtype) only. On a CPU it
    is the same bit for bit whatever the batch, its order and size, the other rows and the number of
    threads: an image goes alone and on one thread through what torch computes, and with others
    through the C++ kernels, in which no row reaches another; noise is keyed by (seed, k). As many
    threads are used as torch has. On an accelerator images are computed in padded blocks of
    `batch_size`, so the shapes are always the same there too; another `batch_size` may move the
    last bits. So may the batch in ``likelihood_regret``, whose gradient steps go over blocks of
    images.

    Args:
        model: a trained :class:`lipvae.VAE` or a subclass, or a :class:`lipvae.Ensemble`. It is
            put into evaluation mode for the time of a call, and left as it was found.
        scores: names of the scores to return; None for all that the samples define, "all" for
            whatever applies to the model and, with a calibration, to its training images.
        num_samples: K. The standard deviations need at least 2.
        seed: of the noise and of the draws, in [0, 2^64).
        batch_size: images of a block on an accelerator, 64 by default. No effect on a CPU.
        num_draws: S, draws of a :class:`lipvae.BayesianVAE`'s weights, 8 by default; of an
            ensemble, as many of its first members, by default all.
        calibration: what :meth:`calibrate` found before, of this model and K.
        refine: steps by which each input's mean is moved; 0 takes the encoder's. Normal posteriors
            only.
        noise: "independent" samples, or "sobol" for scrambled Sobol points, which are best with K a
            power of two. Normal posteriors only.
        decoder_dtype: torch.bfloat16 or torch.float16; None for the model's own.

    Raises:
        TypeError, ValueError: for an argument of the wrong type or out of range.

    Warns:
        RuntimeWarning: for a `decoder_dtype` on a CPU without instructions for it, where it is
            right but slow.

    Source: Glazunov & Zarras 2023, section 4.1.

    Example:
        >>> import lipvae, torch
        >>> model = lipvae.VAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,))
        >>> scorer = Scorer(model, scores=("hole_indicator", "elbo"), num_samples=16)
        >>> x = torch.rand(5, 1, 8, 8)
        >>> scores = scorer(x)
        >>> scores["hole_indicator"].shape
        torch.Size([5])
        >>> torch.equal(scorer(x[3:])["elbo"], scores["elbo"][3:])
        True
    """

    def __init__(
        self,
        model: VAE | Ensemble,
        scores: Sequence[str] | str | None = None,
        num_samples: int = 128,
        seed: int = 0,
        *,
        batch_size: int | None = None,
        num_draws: int | None = None,
        calibration: Calibration | None = None,
        refine: int = 0,
        noise: Literal["independent", "sobol"] = "independent",
        decoder_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, VAE | Ensemble):
            raise TypeError(f"model must be a lipvae.VAE, got {type(model).__name__}")
        self.model = model
        self.num_samples = check_count("num_samples", num_samples)
        self.seed = check_count("seed", seed, 0)
        if seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        self.batch_size = DEFAULT_BLOCK
        if batch_size is not None:
            self.batch_size = check_count("batch_size", batch_size)
        self.num_draws = len(model) if isinstance(model, Ensemble) else DEFAULT_DRAWS
        if num_draws is not None:
            self.num_draws = check_count("num_draws", num_draws)
            if isinstance(model, Ensemble) and num_draws > len(model):
                raise ValueError(
                    f"num_draws must be at most the {len(model)} models of the ensemble, "
                    f"got {num_draws}"
                )
        self._scores = definitions.select(
            scores,
            num_samples,
            posterior=model.posterior_family if isinstance(model, VAE) else None,
            draws=self.num_draws if isinstance(model, Ensemble | BayesianVAE) else 0,
            calibrated=calibration is not None,
        )
        self.refine = check_count("refine", refine, 0)
        if noise not in NOISES:
            raise ValueError(f"noise must be {' or '.join(NOISES)}, got {noise!r}")
        self.noise = noise
        members = model.members if isinstance(model, Ensemble) else [model]
        if any(m.posterior_family != "normal" for m in members):
            if refine:
                raise ValueError(
                    f"refine must be 0 for a posterior that is not normal, got {refine} "
                    f"for {type(model).__name__}"
                )
            if noise != "independent":
                raise ValueError(
                    f"noise must be independent for a posterior that is not normal, got {noise!r} "
                    f"for {type(model).__name__}"
                )
        self.decoder_dtype = check_decoder_dtype(decoder_dtype, members)
        self._noise: dict[tuple[str, int], Noise] = {}
        self._steps_noise: dict[tuple[int, torch.device], Tensor] = {}
        self._drawn: tuple[PackedModel, Ensemble] | None = None
        self._packed: dict[VAE, PackedModel] = {}
        self._calibration: Calibration | None = None
        self._calibrated: PackedModel | None = None
        self.calibration = calibration

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scores, in the order in which a call returns them."""
        return tuple(score.name for score in self._scores)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Scores a batch.

        Args:
            x: [B, C, H, W], floating point in [0, 1], of the model's shape and on its device;
                other floating-point types are converted to the model's.

        Returns:
            For each score, in the order of `names`, float64 [B] on the device of `x`.

        Raises:
            TypeError: if `x` is not a floating-point tensor. 8-bit pixels are refused rather than
                guessed at: divide them by 255.
            ValueError: for another shape or device, an empty batch, NaN or infinite values, or
                values outside [0, 1].
            RuntimeError: if a score needs a calibration of these weights and there is none.
        """
        x = self._check(x)
        calibrated = [score.name for score in self._scores if score.calibrated]
        if self.calibration is None and calibrated:
            raise RuntimeError(
                f"score {calibrated[0]!r} needs training images: call calibrate(data) before"
            )
        if self._calibration is not None:  # of a file, or of before the model was moved
            self._calibration = self._calibration.to(x.device)
        single = self.model if isinstance(self.model, VAE) else None
        with self._evaluating(self.model):
            if calibrated:
                self._check_calibration()
            evidence = Evidence(
                single,
                x,
                self.seed,
                self.calibration,
                statistics=lambda: self._pass(self._single()).run(x, self.batch_size),
                posterior=lambda: self._pass(self._single()).encode(x, self.batch_size),
                draws=lambda: self._statistics_of_draws(x),
            )
            found = {}
            for score in self._scores:
                if score.source == "draws":
                    found[score.name] = score_of_draws(score, evidence.draws)
                    continue
                part = evidence if score.source == "evidence" else getattr(evidence, score.source)
                found[score.name] = score.statistic(part)
        return found

    def statistics(self, x: Tensor) -> ImportanceStatistics:
        """The statistics that the scores are made of, with their own signs.

        Args:
            x: as for a call.

        Returns:
            Statistics over k, float64 [B] each.

        Raises:
            TypeError, ValueError: as for a call.
            TypeError: for an ensemble, see :meth:`statistics_of_draws`.
        """
        x = self._check(x)
        with self._evaluating(self.model):
            return self._pass(self._single()).run(x, self.batch_size)

    def statistics_of_draws(self, x: Tensor) -> list[ImportanceStatistics]:
        """The statistics of each model of an ensemble, or of each draw of a Bayesian model.

        Args:
            x: as for a call.

        Returns:
            As :meth:`statistics`, for s = 0, ..., S - 1.

        Raises:
            TypeError, ValueError: as for a call.
            TypeError: for a model whose weights are not drawn.

        Example:
            >>> import lipvae, torch
            >>> models = [lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(32,)) for _ in "abc"]
            >>> scorer = Scorer(lipvae.Ensemble(models), num_samples=16)
            >>> len(scorer.statistics_of_draws(torch.rand(5, 1, 8, 8)))
            3
        """
        if not isinstance(self.model, Ensemble | BayesianVAE):
            raise TypeError(
                "this needs an ensemble or a lipvae.BayesianVAE, got a "
                f"{type(self.model).__name__}: call statistics()"
            )
        x = self._check(x)
        with self._evaluating(self.model):
            return self._statistics_of_draws(x)

    @property
    def calibration(self) -> Calibration | None:
        """What the training images say, for scores that need it."""
        return self._calibration

    @calibration.setter
    def calibration(self, value: Calibration | None) -> None:
        if value is not None:
            if value.num_samples != self.num_samples:
                raise ValueError(
                    f"calibration must be of num_samples={self.num_samples}, got one of "
                    f"{value.num_samples}: a log-likelihood depends on it"
                )
            if value.refine != self.refine:
                raise ValueError(
                    f"calibration must be of refine={self.refine}, got one of {value.refine}"
                )
            if value.noise != self.noise:
                raise ValueError(
                    f"calibration must be of noise={self.noise!r}, got one of {value.noise!r}"
                )
            if value.decoder_dtype != self.decoder_dtype:
                raise ValueError(
                    f"calibration must be of decoder_dtype={self.decoder_dtype}, got one of "
                    f"{value.decoder_dtype}"
                )
            if value.model != fingerprint(self._single()):
                raise ValueError("calibration must be of this model, got one of other weights")
        self._calibration, self._calibrated = value, None

    def _check_calibration(self) -> None:
        """Requires the weights of the calibration still; inside :meth:`_evaluating`."""
        model, calibration = self._single(), self._calibration
        weights = self._packed[model]
        if weights is self._calibrated or calibration is None:
            return
        if calibration.model != fingerprint(model):
            raise RuntimeError(
                "the model's weights have changed since its calibration: call calibrate(data) again"
            )
        self._calibrated = weights

    def calibrate(self, data: Images, max_images: int = 1000) -> Scorer:
        """Scores training images, for ``typicality``, ``f_lip`` and ``f_agg``.

        Args:
            data: training images, as for :func:`lipvae.fit`.
            max_images: a random choice, by the seed, of as many is used. ``f_lip`` and ``f_agg``
                compare every input with each of them.

        Returns:
            This scorer. Its `calibration` can be saved, and given to another scorer.

        Raises:
            TypeError: for an ensemble.
            TypeError, ValueError: for images that do not fit the model.

        Example:
            >>> import lipvae, torch
            >>> model = lipvae.VAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,))
            >>> scorer = Scorer(model, ["typicality", "f_agg"], num_samples=16)
            >>> scorer = scorer.calibrate(torch.rand(50, 1, 8, 8))
            >>> list(scorer(torch.rand(2, 1, 8, 8)))
            ['typicality', 'f_agg']
        """
        model = self._single()
        images = checked("data", model, data)
        if len(images) > check_count("max_images", max_images):
            order = torch.randperm(len(images), generator=generator(self.seed, 7), device="cpu")
            images = images[order[:max_images].to(images.device)]
        like = first_parameter(model)
        x = self._check(as_input(images.to(like.device), like))
        with self._evaluating(model):
            work = self._pass(model)
            statistics = work.run(x, self.batch_size)
            posterior = work.encode(x, self.batch_size)
        self._calibrated = None
        self._calibration = Calibration(
            entropy=-float(statistics.is_log_likelihood.mean()),
            images=x,
            posterior=posterior,
            num_samples=self.num_samples,
            model=fingerprint(model),
            refine=self.refine,
            noise=self.noise,
            decoder_dtype=self.decoder_dtype,
        )
        return self

    def _single(self) -> VAE:
        if not isinstance(self.model, VAE):
            raise TypeError("this needs a single model, got an ensemble: score its members")
        return self.model

    def _pass(self, model: VAE) -> ImportancePass:
        """Inside :meth:`_evaluating` of the model."""
        key = (model.posterior_family, model.latent_dim)
        if key not in self._noise:
            self._noise[key] = noise_of(model, self.num_samples, self.seed, self.noise)
        return ImportancePass(
            model,
            self._noise[key],
            self._packed[model],
            self.refine,
            self._noise_of_steps(model) if self.refine else None,
            self.decoder_dtype,
        )

    def _noise_of_steps(self, model: VAE) -> Tensor:
        """Kept, for a GPU would wait for it in every call."""
        key = model.latent_dim, first_parameter(model).device
        if key not in self._steps_noise:
            with torch.inference_mode(False):
                noise = antithetic_noise(self.seed, model.latent_dim)
                self._steps_noise[key] = noise.to(key[1])
        return self._steps_noise[key]

    def _weights(self, model: VAE) -> PackedModel:
        """The model's weights, of an earlier call if they are the same still."""
        kept = self._packed.get(model)
        if kept is None or not kept.current():
            kept = self._packed[model] = PackedModel(model)
        return kept

    @contextlib.contextmanager
    def _evaluating(self, model: VAE | Ensemble) -> Iterator[None]:
        """Evaluation mode and projected weights inside the block; every module's mode after it."""
        device = first_parameter(model).device
        # A caller's autocast would hold on this thread and not on those of a pool.
        with evaluating(model), repeatable_convolutions(device), without_autocast(device):
            if isinstance(model, VAE):
                with self._weights(model).in_use():
                    yield
            else:
                yield

    def __getstate__(self) -> dict[str, Any]:
        # What was computed from the weights is known by where they lie.
        return self.__dict__ | {"_packed": {}, "_drawn": None, "_calibrated": None}

    def _members(self) -> Ensemble:
        """The models theta_s; those of a Bayesian model are drawn anew when its weights change."""
        if isinstance(self.model, Ensemble):
            return self.model.ensemble(self.num_draws)
        assert isinstance(self.model, BayesianVAE)
        weights = self._packed[self.model]
        if self._drawn is None or self._drawn[0] is not weights:
            self._packed = {self.model: weights}  # those of the last draws can go
            self._drawn = (weights, self.model.ensemble(self.num_draws, self.seed))
        return self._drawn[1]

    def _statistics_of_draws(self, x: Tensor) -> list[ImportanceStatistics]:
        found = []
        for member in self._members().members:
            with self._evaluating(member):
                found.append(self._pass(member).run(x, self.batch_size))
        return found

    def stream(self, batches: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Scores batches one after the other, for data larger than memory.

        Args:
            batches: tensors as for a call, on any device; each is moved to the model's.

        Yields:
            The scores of each batch, on the CPU.

        Raises:
            TypeError, ValueError: as for a call, when the batch is reached.

        Example:
            >>> import lipvae, torch
            >>> model = lipvae.VAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,))
            >>> batches = (torch.rand(4, 1, 8, 8) for _ in range(3))
            >>> [len(scores["elbo"]) for scores in Scorer(model, num_samples=4).stream(batches)]
            [4, 4, 4]
        """
        for batch in batches:
            if isinstance(batch, Tensor):
                batch = batch.to(first_parameter(self.model).device)
            yield {name: score.cpu() for name, score in self(batch).items()}

    def _check(self, x: object) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if not x.dtype.is_floating_point:
            hint = "; divide 8-bit pixels by 255" if x.dtype == torch.uint8 else ""
            raise TypeError(f"x must be floating point in [0, 1], got {x.dtype}{hint}")
        shape = tuple(self.model.input_shape)
        if tuple(x.shape[1:]) != shape or x.dim() != len(shape) + 1:
            raise ValueError(f"x must have shape [B, {str(shape)[1:-1]}], got {describe(x)}")
        if not len(x):
            raise ValueError("x must hold at least one image, got an empty batch")
        parameter = first_parameter(self.model)
        if x.device != parameter.device:
            raise ValueError(f"x must be on the model's device {parameter.device}, got {x.device}")
        check_unit_interval("x", x)
        # Of the same strides, or a convolution rounds equal images differently.
        return x.detach().to(parameter.dtype).contiguous()

    def __repr__(self) -> str:
        return (
            f"Scorer({type(self.model).__name__}, scores={self.names}, "
            f"num_samples={self.num_samples}, seed={self.seed}"
            f"{f', refine={self.refine}' if self.refine else ''}"
            f"{f', noise={self.noise!r}' if self.noise != 'independent' else ''}"
            f"{f', decoder_dtype={self.decoder_dtype}' if self.decoder_dtype else ''})"
        )
