"""The scores of the importance weights: orientation, order and what they refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lipvae.scores import SCORES as ALL_SCORES
from lipvae.scores import select
from lipvae.statistics import ImportanceAccumulator, ImportanceStatistics

SCORES = {name: score for name, score in ALL_SCORES.items() if score.source == "statistics"}


def statistics(spread: float, level: float = -100.0) -> ImportanceStatistics:
    """Of one input whose log-likelihoods lie `spread` apart around `level`."""
    ll = level + spread * torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    accumulator = ImportanceAccumulator()
    accumulator.update(ll, torch.full_like(ll, -5.0))
    return accumulator.statistics()


STATISTIC = {name: name for name in SCORES} | {"log_likelihood": "log_likelihood_mean"}


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_its_statistic_or_the_negative(name: str) -> None:
    score, found = SCORES[name], statistics(2.0)
    assert score.name == name
    raw = getattr(found, STATISTIC[name])
    assert torch.equal(score.statistic(found), raw if score.raw_orientation == "outlier" else -raw)


def test_every_statistic_has_a_score() -> None:
    fields = {f.name for f in dataclasses.fields(ImportanceStatistics)} - {"num_samples"}
    assert fields == {STATISTIC[name] for name in SCORES}


@pytest.mark.parametrize("name", ["hole_indicator", "stds_of_lls", "ess"])
def test_samples_that_disagree_raise_the_score(name: str) -> None:
    calm, torn = SCORES[name].statistic(statistics(0.5)), SCORES[name].statistic(statistics(5.0))
    assert torn > calm


@pytest.mark.parametrize("name", ["is_log_likelihood", "elbo", "log_likelihood"])
def test_improbable_inputs_raise_the_score(name: str) -> None:
    statistic = SCORES[name].statistic
    assert statistic(statistics(1.0, -200.0)) > statistic(statistics(1.0, -100.0))


def test_divergence() -> None:
    assert torch.allclose(SCORES["kl"].statistic(statistics(1.0)), torch.tensor(5.0).double())


def test_selection_keeps_the_order_and_leaves_out_what_one_sample_cannot_define() -> None:
    assert [s.name for s in select(None, 2)] == list(SCORES)
    assert {s.name for s in select(None, 1)} == set(SCORES) - {"hole_indicator", "stds_of_lls"}
    assert [s.name for s in select(["ess", "elbo"], 1)] == ["ess", "elbo"]


@pytest.mark.parametrize(
    ("names", "error"),
    [("elbo", TypeError), (3, TypeError), ([], ValueError), (["no"], ValueError)],
)
def test_bad_selection(names: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="scores must"):
        select(names, 8)  # type: ignore[arg-type]


def test_every_definition_says_its_orientation() -> None:
    for score in SCORES.values():
        text = score.statistic.__doc__ or ""
        assert ("negated" in text) == (score.raw_orientation == "inlier"), score.name
        assert ("kept" in text) == (score.raw_orientation == "outlier"), score.name
