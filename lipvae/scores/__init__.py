"""The definitions of the scores, one family a file. Higher is more out-of-distribution."""

from __future__ import annotations

from collections.abc import Iterable

from lipvae._validate import describe
from lipvae.scores import holes, likelihood, weights
from lipvae.scores._score import Score

SCORES: dict[str, Score] = {
    score.name: score for family in (holes, likelihood, weights) for score in family.SCORES
}

__all__ = ["SCORES", "Score", "select"]


def select(names: Iterable[str] | None, num_samples: int) -> tuple[Score, ...]:
    """The scores of the given names, in their order.

    Args:
        names: keys of `SCORES`; None for all that K samples define.
        num_samples: K.

    Raises:
        TypeError: if `names` is not a sequence of strings.
        ValueError: for an unknown or repeated name, none at all, or one that needs more samples.

    Example:
        >>> [score.name for score in select(None, num_samples=1)]
        ['is_log_likelihood', 'elbo', 'log_likelihood', 'kl', 'ess']
    """
    if names is None:
        return tuple(score for score in SCORES.values() if num_samples >= score.min_samples)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"scores must be a sequence of names, got {describe(names)}")
    chosen = tuple(names)
    if not chosen:
        raise ValueError("scores must name at least one score, got none")
    for name in chosen:
        if name not in SCORES:
            raise ValueError(f"scores must be among {', '.join(SCORES)}, got {name!r}")
        if chosen.count(name) > 1:
            raise ValueError(f"scores must not repeat a name, got {name!r} twice")
        if num_samples < SCORES[name].min_samples:
            raise ValueError(
                f"score {name!r} needs num_samples of at least {SCORES[name].min_samples}, "
                f"got {num_samples}"
            )
    return tuple(SCORES[name] for name in chosen)
