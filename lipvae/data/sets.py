"""Loading a data set by name, and the list of what there is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np
import torch

from lipvae.data import forged
from lipvae.data.errors import CorruptFileError
from lipvae.data.fetching import data_root, obtain, source_order, split_files
from lipvae.data.formats import Bytes, parse_cifar, parse_idx, parse_svhn, read_unlabelled
from lipvae.data.images import ImageSet
from lipvae.data.registry import BUILT_IN, REGISTRY, DataSet, Split
from lipvae.data.store import Found

NAMES = (*REGISTRY, *BUILT_IN)

_MADE_COUNT = 1000
_UNVERIFIED = "not checked: no digest of it is published"


def load(
    name: str,
    split: Split = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    shape: tuple[int, int, int] | None = None,
    n: int | None = None,
) -> ImageSet:
    """Load a data set into memory, fetching it first where it isn't on this machine.

    ==================  ============  ===================  =================================
    name                shape         train / test         from
    ==================  ============  ===================  =================================
    ``mnist``           (1, 28, 28)   60000 / 10000        see `fetch`
    ``fashion-mnist``   (1, 28, 28)   60000 / 10000        see `fetch`
    ``kmnist``          (1, 28, 28)   60000 / 10000        see `fetch`
    ``cifar10``         (3, 32, 32)   50000 / 10000        see `fetch`
    ``svhn``            (3, 32, 32)   73257 / 26032        see `fetch`
    ``digits``          (1, 8, 8)     1352 / 445           scikit-learn, no download
    ``photo-patches``   `shape`       `n`                  scikit-learn's photographs
    ``near-black``      `shape`       `n`                  `near_black`, seeds 0 and 1
    ``near-white``      `shape`       `n`                  `near_white`, seeds 0 and 1
    ==================  ============  ===================  =================================

    Every file is checked against its published digest each time it is read. Where only a file
    ``kmnist_test_unlabelled.npz`` is at hand, the test split of ``kmnist`` loads from it, without
    labels.

    Args:
        name: one of the names above.
        split: ``"train"`` or ``"test"``.
        root: local folder; see `fetch`.
        download: False keeps to the local folder and the cache.
        shape: (C, H, W), for the sets that are made to measure; C is 1 or 3 for the patches.
        n: for the same sets, the number of images; 1000 by default.

    Raises:
        ValueError: unknown `name` or `split`; `shape` or `n` for a set that has its own.
        DataUnavailableError: no source has the files; the text lists each attempt and its reason.

    Example:
        >>> import lipvae.data
        >>> lipvae.data.load("digits", "test").images.shape
        torch.Size([445, 1, 8, 8])
        >>> lipvae.data.load("near-white", "test", shape=(3, 32, 32), n=10).images.shape
        torch.Size([10, 3, 32, 32])
    """
    if name not in REGISTRY and name not in BUILT_IN:
        raise ValueError(f"name must be one of {sorted([*REGISTRY, *BUILT_IN])}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name in ("digits", *REGISTRY) and (shape is not None or n is not None):
        given = f"shape {shape}" if shape is not None else f"n {n}"
        raise ValueError(f"shape and n must be left out for {name}, which has its own; got {given}")
    if name in BUILT_IN:
        made_shape = BUILT_IN[name].shape if shape is None else shape
        return _load_made(name, split, made_shape, _MADE_COUNT if n is None else n)
    order = source_order(None)
    if not download:
        order = tuple(s for s in order if s in ("folder", "cache"))
    dataset = REGISTRY[name]
    got = obtain(
        dataset,
        split_files(dataset, split),
        data_root(root),
        order,
        progress=sys.stderr.isatty(),
        unlabelled=split == "test",
    )
    if got.unlabelled is not None:
        images, labels = read_unlabelled(got.unlabelled, dataset.shape)
        return _image_set(dataset, split, images, labels, f"{got.unlabelled} ({_UNVERIFIED})")
    source = "; ".join(dict.fromkeys(item.source for item in got.files))
    if not all(item.verified for item in got.files):
        source += f" ({_UNVERIFIED})"
    return _image_set(dataset, split, *_parse(dataset, split, got.files), source)


def _load_made(name: str, split: Split, shape: tuple[int, int, int], n: int) -> ImageSet:
    if name == "digits":
        return forged.digits(split)
    if name == "photo-patches":
        return forged.photo_patches_split(split, (shape[1], shape[2]), n, shape[0])
    make = forged.near_black if name == "near-black" else forged.near_white
    made = make(n, shape, 0 if split == "train" else 1)
    return ImageSet(made.images, None, name, split, made.source)


def _parse(dataset: DataSet, split: Split, found: Sequence[Found]) -> tuple[Bytes, Bytes]:
    if dataset.format == "idx":
        images = parse_idx(found[0].content, str(found[0].path))
        labels = parse_idx(found[1].content, str(found[1].path))
        images = images[:, None] if images.ndim == 3 else images
    elif dataset.format == "cifar":
        batches = [parse_cifar(item.content, str(item.path)) for item in found]
        images = np.concatenate([batch[0] for batch in batches])
        labels = np.concatenate([batch[1] for batch in batches])
    else:
        images, labels = parse_svhn(found[0].content, str(found[0].path))
    expected = (dataset.counts[split], *dataset.shape)
    if images.shape != expected or labels.shape != expected[:1]:
        raise CorruptFileError(
            f"{', '.join(str(item.path) for item in found)}: images {images.shape} and labels "
            f"{labels.shape}, expected {expected} and {expected[:1]}"
        )
    return images, labels


def _image_set(
    dataset: DataSet, split: Split, images: Bytes, labels: Bytes | None, source: str
) -> ImageSet:
    if labels is not None and labels.max(initial=0) >= len(dataset.classes):
        raise CorruptFileError(
            f"{source}: a label is {labels.max()}, expected 0 to {len(dataset.classes) - 1}"
        )
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        name=dataset.name,
        split=split,
        source=source,
    )
