"""What the scores of a batch are computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lipvae._lazy import lazy
from lipvae.statistics import ImportanceStatistics

if TYPE_CHECKING:
    from lipvae.calibration import Calibration
    from lipvae.models import VAE


class Evidence:
    """A batch and what models say of it; each part is computed once, when first asked for.

    Args:
        model: what `images` were given to; None for an ensemble.
        images: [B, C, H, W] in [0, 1].
        seed: of all noise.
        calibration: what the training images say, or None.
        statistics: computes :attr:`statistics`.
        posterior: computes :attr:`posterior`.
        draws: computes :attr:`draws`.
    """

    def __init__(
        self,
        model: VAE | None,
        images: Tensor,
        seed: int,
        calibration: Calibration | None,
        statistics: Callable[[], ImportanceStatistics],
        posterior: Callable[[], Any],
        draws: Callable[[], list[ImportanceStatistics]],
    ) -> None:
        self._model, self.images, self.seed = model, images, seed
        self._calibration = calibration
        self._statistics, self._posterior, self._draws = statistics, posterior, draws

    @property
    def model(self) -> VAE:
        """The model, in evaluation mode."""
        assert self._model is not None
        return self._model

    @property
    def calibration(self) -> Calibration:
        """What the training images say.

        Raises:
            RuntimeError: if there is none.
        """
        if self._calibration is None:
            raise RuntimeError("this score needs training images: call Scorer.calibrate(data)")
        return self._calibration

    @lazy
    def statistics(self) -> ImportanceStatistics:
        """Over the samples k of each image."""
        return self._statistics()

    @lazy
    def posterior(self) -> Any:
        """q(z | x) of each image, with parameters in double."""
        return self._posterior()

    @lazy
    def draws(self) -> list[ImportanceStatistics]:
        """Over the samples k of each image, by each model theta_s."""
        return self._draws()
