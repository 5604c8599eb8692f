"""Philox against the published known answers, and the distributions built on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lipvae.noise import philox4x32, sobol_normal, standard_normal, uniform

# Known answers of Philox4x32-10 published with Random123: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    assert philox4x32(words(counter), words(key)).tolist() == words(expected)


def test_vectorised_equals_one_by_one() -> None:
    counters = [words(counter) for counter, _, _ in KNOWN]
    keys = [words(key) for _, key, _ in KNOWN]
    assert philox4x32(counters, keys).tolist() == [words(expected) for _, _, expected in KNOWN]


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & (2**32 - 1), (a >> 32) ^ c[3] ^ k[1], a & (2**32 - 1)]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**64 - 1])
def test_uniform_is_keyed_by_seed_stream_row_and_column(seed: int) -> None:
    start = 2**32 - 2  # the row index crosses a word
    got = uniform(seed, 4, 5, start=start, stream=9)
    for k in range(4):
        row = start + k
        for j in range(5):
            w = plain_philox([j // 2, 9, row % 2**32, row >> 32], [seed % 2**32, seed >> 32])[
                2 * (j % 2) :
            ]
            bits = (w[1] << 32 | w[0]) >> 12
            assert float(got[k, j]) == (2 * bits + 1) / 2**53


def test_rows_do_not_depend_on_their_number() -> None:
    whole = standard_normal(3, 50, 7)
    assert torch.equal(standard_normal(3, 20, 7), whole[:20])
    assert torch.equal(standard_normal(3, 30, 7, start=20), whole[20:])
    assert torch.equal(standard_normal(3, 50, 4), whole[:, :4])


def test_seeds_and_streams_differ() -> None:
    draws = [uniform(0, 4, 4), uniform(1, 4, 4), uniform(2**32, 4, 4), uniform(0, 4, 4, stream=1)]
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            assert not (a == b).any()


def test_open_interval_at_the_extreme_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, expected in ((0, 2.0**-53), (2**32 - 1, 1 - 2.0**-53)):
        monkeypatch.setattr(
            "lipvae.noise.philox4x32",
            lambda counter, key, word=word: np.full(counter.shape, word, np.uint32),
        )
        assert float(uniform(0, 1, 1)[0, 0]) == expected
        assert torch.isfinite(standard_normal(0, 1, 1)).all()


def test_normal_is_the_inverse_distribution_function() -> None:
    u = uniform(11, 2000, 3)
    assert torch.allclose(
        standard_normal(11, 2000, 3), torch.from_numpy(stats.norm.ppf(u.numpy())), rtol=1e-13
    )


def test_distributions() -> None:
    assert stats.kstest(uniform(5, 20_000, 2).flatten().numpy(), "uniform").pvalue > 1e-3
    normal = standard_normal(5, 20_000, 4)
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(torch.cat([normal[:-1], normal[1:]], 1).T) - torch.eye(8)
    assert correlation.abs().max() < 5 / 20_000**0.5


def test_empty() -> None:
    assert standard_normal(0, 0, 3).shape == (0, 3)
    assert standard_normal(0, 3, 0).shape == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"seed": -1, "num_samples": 1, "dim": 1}, ValueError, "seed"),
        ({"seed": 2**64, "num_samples": 1, "dim": 1}, ValueError, "seed"),
        ({"seed": 0.5, "num_samples": 1, "dim": 1}, TypeError, "seed"),
        ({"seed": 0, "num_samples": -1, "dim": 1}, ValueError, "num_samples"),
        ({"seed": 0, "num_samples": 1, "dim": 1.0}, TypeError, "dim"),
        ({"seed": 0, "num_samples": 1, "dim": 1, "start": 2**64}, ValueError, "start"),
        ({"seed": 0, "num_samples": 1, "dim": 1, "stream": 2**32}, ValueError, "stream"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        uniform(**arguments)


# Sobol points.


def test_sobol_points_have_one_in_each_stratum() -> None:
    for count in (1, 8, 64, 1024):
        cells = (torch.special.ndtr(sobol_normal(7, count, 12)) * count).floor()
        expected = torch.arange(count, dtype=torch.float64)[:, None].expand(-1, 12)
        assert torch.equal(cells.sort(0).values, expected)


def test_sobol_rows_depend_on_their_index_alone() -> None:
    whole = sobol_normal(3, 300, 10)
    assert whole.dtype == torch.float64
    assert torch.equal(whole[130:257], sobol_normal(3, 127, 10, start=130))
    assert not torch.equal(whole, sobol_normal(4, 300, 10))
    assert sobol_normal(2**64 - 1, 0, 3).shape == (0, 3)


@pytest.mark.parametrize("seed", [483503, 538280])
def test_the_first_sobol_point_is_not_rounded_to_one(seed: int) -> None:
    points = sobol_normal(seed, 32, 10)
    assert points.isfinite().all()
    assert points.abs().max() < 6.3
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(points, sobol_normal(seed, 32, 10))
    finally:
        torch.set_default_dtype(before)


def test_each_sobol_row_is_normal() -> None:
    rows = torch.stack([sobol_normal(seed, 6, 2) for seed in range(1500)])
    for k in range(6):
        assert stats.kstest(rows[:, k].flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(rows[:, 3].T)
    assert abs(float(correlation[0, 1])) < 5 / 1500**0.5


def test_means_over_sobol_points_are_closer() -> None:
    def error(draw) -> float:
        means = [draw(seed, 128, 10).square().sum(1).sqrt().mean() for seed in range(40)]
        return float(torch.stack(means).std())

    assert error(sobol_normal) < 0.35 * error(standard_normal)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seed": -1, "num_samples": 1, "dim": 1}, ValueError),
        ({"seed": 2**64, "num_samples": 1, "dim": 1}, ValueError),
        ({"seed": 0, "num_samples": 2, "dim": 1, "start": 2**30 - 1}, ValueError),
        ({"seed": 0, "num_samples": 1, "dim": 0}, ValueError),
        ({"seed": 0, "num_samples": 1, "dim": 30_000}, ValueError),
        ({"seed": 0, "num_samples": 1.5, "dim": 1}, TypeError),
    ],
)
def test_bad_sobol_arguments(arguments: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        sobol_normal(**arguments)
