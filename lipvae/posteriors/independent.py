"""Deep ensembles: models trained independently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lipvae._validate import check_count
from lipvae.batches import Images
from lipvae.models import VAE, Ensemble
from lipvae.persistence import StrPath
from lipvae.training import History, fit


def fit_ensemble(
    make: Callable[[], VAE],
    data: Images,
    *,
    size: int,
    seed: int = 0,
    checkpoint: StrPath | None = None,
    **options: Any,
) -> tuple[Ensemble, list[History]]:
    """Trains models independently: each has its own initial weights, order and noise.

    Args:
        make: returns a new model. It is called with the global generator of torch seeded, which
            is put back afterwards.
        data: as for :func:`lipvae.fit`.
        size: number of members.
        seed: member s is made and trained with seed + s.
        checkpoint: as for :func:`lipvae.fit`, a file for each member: ``name-0.suffix``,
            ``name-1.suffix`` and so on. With ``resume=True`` whole members are taken from theirs.
        **options: of :func:`lipvae.fit`, `epochs` among them.

    Returns:
        The ensemble, and each member's history.

    Raises:
        TypeError, ValueError: for arguments that do not fit: the last seed is below 2**64.

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
    if seed + size > 2**64:
        raise ValueError(f"seed + size - 1 must be below 2**64, got seed {seed}, size {size}")
    models, histories = [], []
    for s in range(size):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + s)
            model = make()
        path = None if checkpoint is None else member_checkpoint(checkpoint, s)
        histories.append(fit(model, data, seed=seed + s, checkpoint=path, **options))
        models.append(model)
    return Ensemble(models), histories


def member_checkpoint(checkpoint: StrPath, member: int) -> Path:
    """The file of one member.

    Example:
        >>> member_checkpoint("run/checkpoint.safetensors", 2).name
        'checkpoint-2.safetensors'
    """
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}-{member}{path.suffix}")
