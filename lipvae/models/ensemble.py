"""Several VAEs of the same data, as draws of the weights' posterior: equation (7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from lipvae._validate import check_count, describe
from lipvae.models.vae import VAE


class Ensemble(nn.Module):
    """VAEs with different weights theta_s of one data set.

    They come from :meth:`lipvae.BayesianVAE.ensemble` (Bayes by Backprop) or from
    :mod:`lipvae.posteriors` (independent trainings, SWAG, SGHMC). A :class:`lipvae.Scorer` takes
    an ensemble like a model and gives the scores of equation (7).

    Args:
        members: at least one VAE; their input shapes and likelihoods must be the same. They are
            taken as they are, not copied.

    Raises:
        TypeError: if a member is not a VAE.
        ValueError: for no members, or members that do not fit together.

    Source: Lakshminarayanan, Pritzel & Blundell 2017; Glazunov & Zarras 2022.

    Example:
        >>> models = [VAE((1, 8, 8), 2, architecture="fc", hidden=(32,)) for _ in range(3)]
        >>> len(Ensemble(models))
        3
    """

    def __init__(self, members: Sequence[VAE]) -> None:
        super().__init__()
        models = list(members)
        if not models:
            raise ValueError("members must hold at least one model, got none")
        for model in models:
            if not isinstance(model, VAE):
                raise TypeError(f"members must be lipvae models, got {describe(type(model))}")
            ours = (models[0].input_shape, models[0].likelihood.name)
            if (model.input_shape, model.likelihood.name) != ours:
                raise ValueError(
                    f"members must share input_shape and likelihood, got {ours} and "
                    f"{(model.input_shape, model.likelihood.name)}"
                )
        self._members = nn.ModuleList(models)
        self.input_shape = models[0].input_shape
        self.likelihood = models[0].likelihood

    @property
    def members(self) -> tuple[VAE, ...]:
        """The models."""
        return tuple(cast(list[VAE], list(self._members)))

    @property
    def input_size(self) -> int:
        """D = C * H * W, the dimensions of x."""
        return self.members[0].input_size

    def __len__(self) -> int:
        return len(self._members)

    def ensemble(self, num_draws: int, seed: int = 0) -> Ensemble:
        """The first `num_draws` members, or all where there are fewer; nothing is drawn."""
        check_count("num_draws", num_draws)
        return self if num_draws >= len(self) else Ensemble(self.members[:num_draws])
