"""All scores of an input from one encode and one decode pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lipvae import scores as definitions
from lipvae._importance_pass import ImportancePass, NoiseTiles
from lipvae._validate import check_count, check_unit_interval, describe
from lipvae.models import VAE
from lipvae.nn import frozen
from lipvae.statistics import ImportanceStatistics

# Images that an accelerator decodes at once, TILE samples of each.
DEFAULT_BLOCK = 64


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

    Samples stream through in tiles, so memory does not grow with K. Where the decoder ends in a
    linear layer, that layer and the log-likelihood are one op and the logits are never stored.

    A score depends on (model, x, seed, num_samples) only. On a CPU it is the same bit for bit
    whatever the batch, its order and size, the other rows and the number of threads: every image
    is computed alone by one thread, with noise keyed by (seed, k), and as many images at once as
    torch has threads. On an accelerator images are computed in padded blocks of `batch_size`, so
    the shapes are always the same there too; another `batch_size` may move the last bits.

    Args:
        model: a trained :class:`lipvae.VAE` or a subclass. It is put into evaluation mode for the
            time of a call, and left as it was found.
        scores: names of the scores to return; None for all that K samples define.
        num_samples: K. The standard deviations need at least 2.
        seed: of the noise, in [0, 2^64).
        batch_size: images of a block on an accelerator, 64 by default. No effect on a CPU.

    Raises:
        TypeError, ValueError: for an argument of the wrong type or out of range.

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
        model: VAE,
        scores: Sequence[str] | None = None,
        num_samples: int = 128,
        seed: int = 0,
        *,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(model, VAE):
            raise TypeError(f"model must be a lipvae.VAE, got {type(model).__name__}")
        self.model = model
        self.num_samples = check_count("num_samples", num_samples)
        self.seed = check_count("seed", seed, 0)
        if seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        self.batch_size = DEFAULT_BLOCK
        if batch_size is not None:
            self.batch_size = check_count("batch_size", batch_size)
        self._scores = definitions.select(scores, num_samples)
        self._noise = NoiseTiles(num_samples, seed, model.latent_dim)

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
        """
        statistics = self.statistics(x)
        return {score.name: score.statistic(statistics) for score in self._scores}

    def statistics(self, x: Tensor) -> ImportanceStatistics:
        """The statistics that the scores are made of, with their own signs.

        Args:
            x: as for a call.

        Returns:
            Statistics over k, float64 [B] each.

        Raises:
            TypeError, ValueError: as for a call.
        """
        x = self._check(x)
        with _evaluating(self.model):
            return ImportancePass(self.model, self._noise).run(x, self.batch_size)

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
                batch = batch.to(next(self.model.parameters()).device)
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
        parameter = next(self.model.parameters())
        if x.device != parameter.device:
            raise ValueError(f"x must be on the model's device {parameter.device}, got {x.device}")
        check_unit_interval("x", x)
        return x.detach().to(parameter.dtype)

    def __repr__(self) -> str:
        return (
            f"Scorer({type(self.model).__name__}, scores={self.names}, "
            f"num_samples={self.num_samples}, seed={self.seed})"
        )


@contextlib.contextmanager
def _evaluating(model: VAE) -> Iterator[None]:
    """Evaluation mode and projected weights inside the block; every module's mode after it."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with frozen(model):
            yield
    finally:
        for module in training:
            module.training = True
