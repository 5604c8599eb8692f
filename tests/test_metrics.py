"""Metrics against their definitions, counted out by brute force."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipvae.metrics import OODMetrics, ood_metrics, ood_metrics_interval


def brute_auroc(inliers, outliers):
    wins = sum((o > i) + 0.5 * (o == i) for i, o in itertools.product(inliers, outliers))
    return wins / (len(inliers) * len(outliers))


def brute_average_precision(positives, negatives):
    """Sum over thresholds of the recall gained there times the precision there."""
    total = 0.0
    for t in set(positives):
        true = sum(p >= t for p in positives)
        false = sum(n >= t for n in negatives)
        total += sum(p == t for p in positives) / len(positives) * true / (true + false)
    return total


def brute_fpr80(inliers, outliers):
    points = []
    for t in set(inliers) | set(outliers):
        true = sum(o >= t for o in outliers)
        # In whole numbers: |true/M - 4/5| orders as |5 true - 4 M|.
        points.append((abs(5 * true - 4 * len(outliers)), t, sum(i >= t for i in inliers)))
    nearest = min(distance for distance, _, _ in points)
    return min(p for p in points if p[0] == nearest)[2] / len(inliers)


def brute(inliers, outliers):
    return OODMetrics(
        brute_auroc(inliers, outliers),
        brute_average_precision(outliers, inliers),
        brute_average_precision([-i for i in inliers], [-o for o in outliers]),
        brute_fpr80(inliers, outliers),
    )


def assert_close(got, expected, tolerance=1e-12):
    assert dataclasses.astuple(got) == pytest.approx(dataclasses.astuple(expected), abs=tolerance)


# Few distinct values make ties the rule; the wide ones span every size, infinities included.
narrow = st.integers(-3, 3).map(float)
wide = st.floats(allow_nan=False)
score_lists = st.one_of(
    st.lists(narrow, min_size=1, max_size=12), st.lists(wide, min_size=1, max_size=12)
)


@settings(deadline=None, max_examples=300)
@given(score_lists, score_lists)
def test_agrees_with_the_definitions(inliers, outliers):
    assert_close(ood_metrics(inliers, outliers), brute(inliers, outliers))


@settings(deadline=None)
@given(score_lists, score_lists)
def test_swapping_the_sets_and_the_sign_swaps_the_precisions(inliers, outliers):
    straight = ood_metrics(inliers, outliers)
    swapped = ood_metrics([-o for o in outliers], [-i for i in inliers])
    assert swapped.auroc == pytest.approx(straight.auroc, abs=1e-12)
    assert swapped.auprc == pytest.approx(straight.auprc_inlier, abs=1e-12)
    assert swapped.auprc_inlier == pytest.approx(straight.auprc, abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=20),
    st.lists(st.integers(-40, 40), min_size=1),
)
def test_a_strictly_increasing_map_changes_nothing(inliers, outliers):
    i, o = np.array(inliers, float), np.array(outliers, float)
    plain = ood_metrics(i, o)
    assert ood_metrics(np.exp(i), np.exp(o)) == plain
    assert ood_metrics(1e30 * i - 1e29, 1e30 * o - 1e29) == plain
    assert ood_metrics(1e-300 * i, 1e-300 * o) == plain


@settings(deadline=None)
@given(score_lists, score_lists, st.randoms())
def test_order_within_a_set_changes_nothing(inliers, outliers, random):
    plain = ood_metrics(inliers, outliers)
    random.shuffle(inliers)
    random.shuffle(outliers)
    assert ood_metrics(inliers, outliers) == plain


def test_large_raw_log_likelihoods_are_not_squashed():
    # A metric that passes scores through a sigmoid sees nothing but ones and zeros here.
    rng = np.random.default_rng(0)
    inliers, outliers = rng.normal(-3000, 50, 400), rng.normal(-2900, 50, 300)
    assert_close(ood_metrics(inliers, outliers), brute(inliers.tolist(), outliers.tolist()), 1e-9)
    assert 0.85 < ood_metrics(inliers, outliers).auroc < 0.97
    assert ood_metrics(torch.tensor([1e30]), torch.tensor([2e30])).auroc == 1.0


def test_neighbouring_floats_are_told_apart_in_their_own_precision():
    above64, above32 = (
        math.nextafter(1e9, math.inf),
        np.nextafter(np.float32(1e9), np.float32("inf")),
    )
    assert ood_metrics([1e9], [above64]).auroc == 1.0
    assert ood_metrics(torch.tensor([1e9]), torch.tensor([float(above32)])).auroc == 1.0


def test_infinities_are_ranked():
    result = ood_metrics([-math.inf, 0.0], [1.0, math.inf, math.inf])
    assert result == OODMetrics(1.0, 1.0, 1.0, 0.0)
    assert ood_metrics([math.inf], [math.inf]).auroc == 0.5


def test_one_and_one():
    # TPR 1 holds at both thresholds; the lower one flags the inlier too.
    assert ood_metrics([0.0], [1.0]) == OODMetrics(1.0, 1.0, 1.0, 1.0)
    assert ood_metrics([1.0], [0.0]) == OODMetrics(0.0, 0.5, 0.5, 1.0)
    assert ood_metrics([1.0], [1.0]) == OODMetrics(0.5, 0.5, 0.5, 1.0)


def test_precision_depends_on_which_class_is_positive():
    result = ood_metrics([0.0, 1.0, 2.0, 3.0], [4.0])
    assert result.auprc == 1.0
    tied = ood_metrics(np.zeros(9), np.zeros(1))
    assert tied.auprc == pytest.approx(0.1)
    assert tied.auprc_inlier == pytest.approx(0.9)


def test_fpr80_takes_the_lowest_threshold_of_the_nearest_tpr():
    # TPR 4/5 holds for the thresholds 2 (its own), 1.5 and 1.2; the lowest flags both inliers.
    outliers = [2.0, 3.0, 4.0, 5.0, 1.0]
    assert ood_metrics([1.5, 1.2, 0.0, 0.5], outliers).fpr80 == 0.5
    # Of three outliers two flagged (distance 2/15) are nearer than three (3/15).
    assert ood_metrics([0.0, 1.5, 4.0], [1.0, 2.0, 3.0]).fpr80 == pytest.approx(2 / 3)
    # Of two, both flagged (3/15) are nearer than one (4.5/15): the lowest threshold flags all.
    assert ood_metrics([0.0, 1.0], [2.0, 3.0]).fpr80 == 1.0


def test_fpr80_never_takes_the_threshold_above_all_scores():
    # The only outlier ties with every inlier: the one observed threshold flags everything.
    assert ood_metrics([1.0, 1.0], [1.0]).fpr80 == 1.0


@pytest.mark.parametrize("count", [3, 7, 10, 10000])
def test_fpr80_survives_tprs_that_no_float_holds(count):
    outliers = np.arange(count, dtype=float)
    inliers = outliers - 0.5
    exact = min(range(1, count + 1), key=lambda k: (abs(5 * k - 4 * count), -k))
    # k outliers flagged at the threshold count - k; the inlier just below it still has TPR k/M.
    assert ood_metrics(inliers, outliers).fpr80 == pytest.approx(exact / count)


@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.array,
        lambda x: np.array(x, np.float32),
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.float16),
        lambda x: torch.tensor(x, dtype=torch.int64),
    ],
)
def test_takes_lists_arrays_and_tensors(convert):
    inliers, outliers = [0.0, 1.0, 4.0], [2.0, 3.0, 5.0, 6.0]
    assert_close(ood_metrics(convert(inliers), convert(outliers)), brute(inliers, outliers))


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ([], ValueError, "must not be empty"),
        ([0.0, math.nan], ValueError, "must not have NaN, got 1 among 2"),
        ([[0.0], [1.0]], ValueError, r"one dimension, got shape \(2, 1\)"),
        (3.0, ValueError, r"one dimension, got shape \(\)"),
        ([1j], TypeError, "complex128"),
        (["a"], TypeError, "real numbers"),
        ([True], TypeError, "bool"),
    ],
)
@pytest.mark.parametrize("name", ["inlier_scores", "outlier_scores"])
def test_bad_scores_are_named(name, bad, error, text):
    scores = {"inlier_scores": [0.0], "outlier_scores": [1.0], name: bad}
    with pytest.raises(error, match=rf"{name}.*{text}"):
        ood_metrics(**scores)


def test_percent_and_text():
    metrics = OODMetrics(0.98765, 0.5, 0.25, 0.0123)
    assert metrics.percent() == {
        "auroc": pytest.approx(98.765),
        "auprc": 50.0,
        "auprc_inlier": 25.0,
        "fpr80": pytest.approx(1.23),
    }
    text = str(metrics)
    for part in (
        "AUROC 98.77%",
        "AUPRC 50.00% (outliers positive)",
        "25.00% (inliers",
        "FPR80 1.23%",
    ):
        assert part in text
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics.auroc = 1.0


def resampled(inliers, outliers, n, seed):
    """The same draws as the interval's, metric by metric through ood_metrics."""
    rng = np.random.default_rng(seed)
    picked_in = rng.integers(0, len(inliers), (n, len(inliers)))
    picked_out = rng.integers(0, len(outliers), (n, len(outliers)))
    return np.array(
        [
            dataclasses.astuple(ood_metrics(inliers[a], outliers[b]))
            for a, b in zip(picked_in, picked_out, strict=True)
        ]
    )


@pytest.mark.parametrize("ties", [False, True])
def test_interval_is_the_quantiles_of_resampled_metrics(ties):
    rng = np.random.default_rng(3)
    inliers, outliers = rng.normal(0, 1, 23), rng.normal(1, 1, 17)
    if ties:
        inliers, outliers = inliers.round(), outliers.round()
    low, high = ood_metrics_interval(inliers, outliers, confidence=0.8, n_resamples=60, seed=5)
    expected = np.quantile(resampled(inliers, outliers, 60, 5), [0.1, 0.9], axis=0)
    assert dataclasses.astuple(low) == pytest.approx(expected[0], abs=1e-12)
    assert dataclasses.astuple(high) == pytest.approx(expected[1], abs=1e-12)


def test_interval_covers_the_true_auroc_about_as_often_as_it_says():
    # Two unit normals whose means differ by 1 have AUROC Φ(1/√2).
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = ood_metrics_interval(
            rng.normal(0, 1, 80), rng.normal(1, 1, 80), confidence=0.9, n_resamples=200, seed=seed
        )
        hits += low.auroc <= truth <= high.auroc
    # 200 trials at 90% have standard deviation 2.1%; the percentile method undercovers a little.
    assert 0.82 <= hits / 200 <= 0.96


def test_interval_narrows_with_more_data_and_repeats_with_its_seed():
    rng = np.random.default_rng(1)
    widths = []
    for n in (50, 2000):
        scores = rng.normal(0, 1, n), rng.normal(1, 1, n)
        low, high = ood_metrics_interval(*scores, n_resamples=200)
        assert (low, high) == ood_metrics_interval(*scores, n_resamples=200)
        assert low.auroc < ood_metrics(*scores).auroc < high.auroc
        widths.append(high.auroc - low.auroc)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"confidence": 1.0}, "confidence"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_interval_names_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        ood_metrics_interval([0.0], [1.0], **options)
