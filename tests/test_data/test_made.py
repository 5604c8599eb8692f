"""Images in memory, and the sets that are made here."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lipvae.data


def test_image_set_scales_selects_and_takes():
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1) * 85
    some = lipvae.data.ImageSet(images, torch.tensor([0, 1, 2, 1]), "x", "test", "made")
    assert some.float().flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert some.images.dtype == torch.uint8
    assert some.shape == (1, 1, 1)
    assert some.select([1]).images.flatten().tolist() == [85, 255]
    assert some.select(2).labels.tolist() == [2]
    assert some.take(slice(0, 2)).labels.tolist() == [0, 1]
    assert len(some.take(torch.tensor([3]))) == 1
    with pytest.raises(ValueError, match=r"labels must be among .*\[0, 1, 2\], got \[7\]"):
        some.select([7])
    with pytest.raises(ValueError, match="has none"):
        lipvae.data.near_black(1, (1, 2, 2)).select(0)


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (torch.zeros(2, 1, 3, 3), None, "images must be uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), None, "images must be uint8"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "labels"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), "labels must be int64"),
    ],
)
def test_image_set_checks_its_tensors(images, labels, text):
    with pytest.raises(ValueError, match=text):
        lipvae.data.ImageSet(images, labels, "x", "test", "made")


def test_digits_are_lossless_stratified_and_complete():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    splits = [lipvae.data.load("digits", split) for split in ("train", "test")]
    levels = torch.cat([s.images for s in splits]).double().mul(16 / 255).round()
    rebuilt = {tuple(row) for row in levels.flatten(1).int().tolist()}
    assert rebuilt == {tuple(row) for row in bunch.data.astype(int).tolist()}
    assert len(splits[0]) + len(splits[1]) == len(bunch.data)
    share = splits[1].labels.bincount() / torch.tensor(np.bincount(bunch.target))
    assert share.min() > 0.23
    assert share.max() <= 0.25
    counts = lipvae.data.describe()
    row = next(r for r in counts if r.name == "digits")
    assert row.splits == f"train {len(splits[0])}, test {len(splits[1])}"
    assert splits[0].float().max() == 1.0


def test_forged_sets_stay_near_their_ends_and_mirror_each_other():
    black = lipvae.data.near_black(50, (3, 16, 16), seed=4)
    white = lipvae.data.near_white(50, (3, 16, 16), seed=4)
    assert black.images.shape == (50, 3, 16, 16)
    assert black.labels is None
    assert (black.images + white.images == 255).all()
    # Uniform on the 13 levels 0..12: every level occurs, the mean is 6 (standard error 0.02).
    assert black.images.unique().tolist() == list(range(13))
    assert black.images.double().mean() == pytest.approx(6, abs=0.1)
    assert (lipvae.data.near_black(50, (3, 16, 16), seed=4).images == black.images).all()
    assert (lipvae.data.near_black(50, (3, 16, 16), seed=5).images != black.images).any()


@pytest.mark.parametrize("make", [lipvae.data.near_black, lipvae.data.near_white])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"shape": (8, 8)}, "shape must be"),
        ({"shape": (1, 0, 8)}, "shape must be"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"amplitude": 0.0}, "amplitude must be"),
        ({"amplitude": 1.0}, "amplitude must be"),
        ({"amplitude": 0.001}, "amplitude must be"),
    ],
)
def test_forged_sets_name_bad_arguments(make, arguments, text):
    with pytest.raises(ValueError, match=text):
        make(**{"n": 1, "shape": (1, 8, 8), **arguments})


def test_splits_of_photo_patches_share_no_pixel(monkeypatch):
    # Each pixel tells its column, so that a patch tells where it was cut.
    columns = np.broadcast_to(np.arange(640) // 3, (427, 640))
    photo = np.repeat(columns[..., None], 3, 2).astype(np.uint8)
    photos = SimpleNamespace(images=[photo, photo])
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: photos)
    train, test = (
        lipvae.data.load("photo-patches", split, shape=(1, 8, 8)).images
        for split in ("train", "test")
    )
    assert int(train.max()) <= 319 // 3
    assert int(test.min()) >= 320 // 3
    assert int(train.min()) < 10
    assert int(test.max()) > 200


def test_photo_patches_are_cut_from_the_photographs():
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    colour = lipvae.data.photo_patches((5, 7), 40, seed=1, channels=3)
    assert colour.images.shape == (40, 3, 5, 7)
    windows = np.lib.stride_tricks.sliding_window_view(np.stack(photos), (5, 7), axis=(1, 2))
    for patch in colour.images[:5].numpy():
        assert (windows == patch).all(axis=(-3, -2, -1)).any()
    grey = lipvae.data.photo_patches((5, 7), 40, seed=1).images[:, 0].double()
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    luma = (colour.images.double() * weights[:, None, None]).sum(1)
    assert (grey - luma).abs().max() <= 0.5 + 1e-9
    assert (
        lipvae.data.photo_patches(8, 9, 3).images == lipvae.data.photo_patches(8, 9, 3).images
    ).all()


def test_photo_patches_reach_the_whole_photograph_and_no_further():
    assert lipvae.data.photo_patches((427, 640), 1).images.shape == (1, 1, 427, 640)
    with pytest.raises(ValueError, match="size must be"):
        lipvae.data.photo_patches((428, 8), 1)
    with pytest.raises(ValueError, match="size must be"):
        lipvae.data.photo_patches(0, 1)
    with pytest.raises(ValueError, match="channels must be"):
        lipvae.data.photo_patches(8, 1, channels=2)


def test_photo_patch_splits_come_from_different_halves():
    train = lipvae.data.load("photo-patches", "train", shape=(3, 32, 32), n=300)
    test = lipvae.data.load("photo-patches", "test", shape=(3, 32, 32), n=300)
    assert train.split == "train"
    shared = {p.numpy().tobytes() for p in train.images} & {
        p.numpy().tobytes() for p in test.images
    }
    assert not shared


def test_made_sets_load_in_any_shape_and_differ_by_split():
    for name in ("near-black", "near-white"):
        train, test = (lipvae.data.load(name, s, shape=(3, 4, 5), n=6) for s in ("train", "test"))
        assert train.images.shape == (6, 3, 4, 5)
        assert (train.images != test.images).any()
        assert (train.name, train.split) == (name, "train")
        assert lipvae.data.load(name).images.shape == (1000, 1, 28, 28)
