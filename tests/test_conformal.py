"""Conformal p-values, by counting and by their promise."""

from __future__ import annotations

import pytest
import torch

from lipvae import p_values


def test_counts_inliers_that_score_as_high() -> None:
    generator = torch.Generator().manual_seed(0)
    inliers = torch.randint(0, 20, (57,), generator=generator).double()  # with ties
    scores = torch.randint(-3, 23, (4, 30), generator=generator).double()
    found = p_values(scores, inliers)
    as_high = (inliers >= scores.unsqueeze(-1)).sum(-1)
    assert torch.equal(found, (1 + as_high).double() / 58)


@pytest.mark.parametrize("ties", [False, True])
def test_false_alarms_keep_to_their_level(ties: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    n, repeats, level = 39, 20_000, 0.05
    draws = torch.randn(repeats, n + 1, generator=generator, dtype=torch.float64)
    draws = draws.round(decimals=1) if ties else draws
    p = torch.stack([p_values(row[-1:], row[:-1]) for row in draws])
    rate = float((p <= level).double().mean())
    spread = (level * (1 - level) / repeats) ** 0.5
    assert rate < level + 4 * spread
    if not ties:  # 2 of 40 places: the level is reached
        assert rate > level - 4 * spread


def test_infinite_and_neighbouring_scores() -> None:
    inliers = torch.tensor([-torch.inf, 1.0, torch.inf])
    found = p_values(torch.tensor([-torch.inf, 1.0, torch.inf]), inliers)
    assert found.tolist() == [1.0, 0.75, 0.5]
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    assert p_values(below, inliers) == 0.75
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert p_values(above, inliers) == 0.5
    assert p_values(torch.empty(0), inliers).shape == (0,)


@pytest.mark.parametrize(
    ("scores", "inliers", "error", "text"),
    [
        ([1.0], torch.ones(3), TypeError, "scores must be a torch.Tensor"),
        (torch.ones(2), torch.ones(3, dtype=torch.int64), TypeError, "inliers must be floating"),
        (torch.ones(2), torch.ones(0), ValueError, "inliers must hold at least one"),
        (torch.ones(2), torch.ones(2, 2), ValueError, "inliers must have 1 dim"),
        (torch.tensor([torch.nan]), torch.ones(3), ValueError, "scores must not be NaN"),
        (torch.ones(2), torch.tensor([torch.nan]), ValueError, "inliers must not be NaN"),
    ],
)
def test_bad_arguments_are_named(scores, inliers, error, text) -> None:
    with pytest.raises(error, match=text):
        p_values(scores, inliers)
