"""The definitions of the scores, one family a file. Higher is more out-of-distribution."""

from __future__ import annotations

from collections.abc import Iterable

from lipvae._validate import describe
from lipvae.scores import (
    complexity,
    confounds,
    ensembles,
    holes,
    latent,
    likelihood,
    regret,
    typicality,
    weights,
)
from lipvae.scores._evidence import Evidence
from lipvae.scores._score import Score

_FAMILIES = (
    holes,
    likelihood,
    weights,
    complexity,
    typicality,
    latent,
    ensembles,
    regret,
    confounds,
)

SCORES: dict[str, Score] = {score.name: score for family in _FAMILIES for score in family.SCORES}

ALL = "all"

__all__ = ["ALL", "SCORES", "Evidence", "Score", "select"]


def select(
    names: Iterable[str] | str | None,
    num_samples: int,
    *,
    posterior: str | None = "normal",
    draws: int = 0,
    calibrated: bool = False,
) -> tuple[Score, ...]:
    """The scores of the given names, in their order.

    Args:
        names: keys of `SCORES`. None for those that the samples define: of the statistics over k,
            and over the draws where there are some. "all" for whatever applies.
        num_samples: K.
        posterior: family of q(z | x) of the single model, which most scores are of; None where
            there is none, only an ensemble.
        draws: S, models of an ensemble; 0 where there is none.
        calibrated: whether "all" may have scores that need training images.

    Raises:
        TypeError: if `names` is not a sequence of strings.
        ValueError: for an unknown or repeated name, none at all, or one that needs more samples,
            a single model, or an ensemble.

    Example:
        >>> [score.name for score in select(None, num_samples=1)]
        ['is_log_likelihood', 'elbo', 'log_likelihood', 'kl', 'ess']
    """
    obstacles = {s.name: _obstacle(s, num_samples, posterior, draws) for s in SCORES.values()}
    if names is None or names == ALL:
        sources = ("statistics", "draws") if names is None else None
        found = tuple(
            score
            for score in SCORES.values()
            if obstacles[score.name] is None
            and (sources is None or score.source in sources)
            and (calibrated or not score.calibrated)
        )
        if not found:
            raise ValueError(
                "an ensemble needs at least 2 models for its scores, got num_draws of "
                f"{draws}; score a single model by itself"
            )
        return found
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"scores must be a sequence of names, or 'all', got {describe(names)}")
    chosen = tuple(names)
    if not chosen:
        raise ValueError("scores must name at least one score, got none")
    for name in chosen:
        if name not in SCORES:
            raise ValueError(f"scores must be among {', '.join(SCORES)}, got {name!r}")
        if chosen.count(name) > 1:
            raise ValueError(f"scores must not repeat a name, got {name!r} twice")
        if obstacles[name] is not None:
            raise ValueError(f"score {name!r} needs {obstacles[name]}")
    return tuple(SCORES[name] for name in chosen)


def _obstacle(score: Score, num_samples: int, posterior: str | None, draws: int) -> str | None:
    """What a score lacks, in words; None if it is defined."""
    if score.source == "images":
        return None
    if score.source == "draws":
        if not draws:
            return "an ensemble or a Bayesian model, got a single model"
        if draws < 2:
            return f"num_draws of at least 2, got {draws}"
    elif posterior is None:
        return "a single model, got an ensemble"
    elif score.posterior not in (None, posterior):
        return f"a {score.posterior} posterior, got {posterior}"
    if num_samples < score.min_samples:
        return f"num_samples of at least {score.min_samples}, got {num_samples}"
    return None
