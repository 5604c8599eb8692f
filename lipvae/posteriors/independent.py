"""Deep ensembles: models trained independently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lipvae._validate import check_count
from lipvae.batches import Images
from lipvae.models import VAE, Ensemble
from lipvae.training import History, fit


def fit_ensemble(
    make: Callable[[], VAE], data: Images, *, size: int, seed: int = 0, **options: Any
) -> tuple[Ensemble, list[History]]:
    """Trains models independently: each has its own initial weights, order and noise.

    Args:
        make: returns a new model. It is called with the global generator of torch seeded, which
            is put back afterwards.
        data: as for :func:`lipvae.fit`.
        size: number of members.
        seed: member s is made and trained with seed + s.
        **options: of :func:`lipvae.fit`, `epochs` among them.

    Returns:
        The ensemble, and each member's history.

    Source: Lakshminarayanan, Pritzel & Blundell 2017; for generative models Choi, Jang & Alemi
    2018, "WAIC, but Why?".

    Example:
        >>> import lipvae
        >>> def make():
        ...     return lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
        >>> images = torch.rand(64, 1, 8, 8)
        >>> ensemble, histories = fit_ensemble(make, images, size=2, epochs=1, progress=False)
        >>> len(ensemble), len(histories)
        (2, 2)
    """
    check_count("size", size)
    check_count("seed", seed, 0)
    models, histories = [], []
    for s in range(seed, seed + size):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s)
            model = make()
        histories.append(fit(model, data, seed=s, **options))
        models.append(model)
    return Ensemble(models), histories
