"""Files on disk: the cache, whole or not at all, and the check of what arrives from any source."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch

from lipvae.data.errors import CorruptFileError, SourceError
from lipvae.data.formats import Bytes, gunzip
from lipvae.data.registry import REGISTRY, DataFile, DataSet


@dataclass(frozen=True, eq=False)
class Found:
    """A file that is there: where, from which source, its decompressed content."""

    file: DataFile
    path: Path
    source: str
    content: Bytes
    verified: bool


def cache_root() -> Path:
    """Return the cache folder: ``LIPVAE_CACHE``, or the platform's cache folder for the user."""
    chosen = os.environ.get("LIPVAE_CACHE")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("lipvae"))


def cache_folder(dataset: DataSet) -> Path:
    """Return the folder of one data set inside the cache."""
    return cache_root() / dataset.name


def read_verified(file: DataFile, path: Path) -> tuple[Bytes, bool]:
    """Read a file, gzip or plain, and check its digest.

    Returns:
        The decompressed content, and whether a digest vouches for it. Only a decompressed file
        whose publisher gives the archive's digest alone comes back as not vouched for.

    Raises:
        CorruptFileError: it differs from the official file; the text says in what.
    """
    packed = path.name.endswith(".gz")
    try:
        if packed:
            raw = path.read_bytes()
            content = gunzip(raw, str(path))
        else:
            content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if content.size != file.size:
        state = "truncated" if content.size < file.size else "too long"
        raise CorruptFileError(f"{path} is {state}: {content.size} bytes, expected {file.size}")
    if file.sha256 is None and packed and file.packed is not None:
        algorithm, _, expected = file.packed.partition(":")
        return content, _compare(path, algorithm, hashlib.new(algorithm, raw).hexdigest(), expected)
    digest = hashlib.sha256(content.data).hexdigest()
    if file.sha256 is not None:
        return content, _compare(path, "sha256", digest, file.sha256)
    owner = _owner(digest)
    if owner is not None:
        raise CorruptFileError(f"{path} is the file of another data set, {owner}")
    return content, False


def _compare(path: Path, algorithm: str, digest: str, expected: str) -> bool:
    if digest != expected:
        owner = _owner(digest)
        why = f"it is the file of {owner}" if owner else "the file is damaged or altered"
        raise CorruptFileError(
            f"{path} has {algorithm} {digest[:16]}…, expected {expected[:16]}…: {why}"
        )
    return True


def _owner(digest: str) -> str | None:
    for dataset in REGISTRY.values():
        if any(digest in (f.sha256, (f.packed or "").rpartition(":")[2]) for f in dataset.files):
            return dataset.name
    return None


def install(file: DataFile, candidate: Path, target_folder: Path) -> Found:
    """Check a candidate and move it into the cache, whole or not at all.

    The content is written beside the candidate, flushed to disk and renamed, so that a reader sees
    the old state or the new one. The candidate's folder must be on the cache's file system.
    """
    content, verified = read_verified(file, candidate)
    part = candidate.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
    if not file.cached_name.endswith(".gz"):
        content.tofile(part)
    elif candidate.name.endswith(".gz"):
        shutil.copyfile(candidate, part)  # a copy has the user's usual permissions
    else:
        raise CorruptFileError(f"{candidate} is decompressed; only its archive can be checked")
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    target = target_folder / file.cached_name
    part.replace(target)
    return Found(file, target, "cache", content, verified)


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Give a fresh folder inside `folder`, alone among processes, removed on the way out.

    A process that was killed leaves its work folder behind; the next one removes it, which is
    safe since it holds the lock.

    Raises:
        SourceError: the cache cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if stack.enter_context(_locked(folder)):
                for stale in folder.glob(".fetch-*"):
                    shutil.rmtree(stale, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
        except OSError as error:
            raise SourceError(
                f"the cache folder {folder} cannot be written ({error.strerror or error}); "
                "set LIPVAE_CACHE to a folder that can"
            ) from error
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        yield work


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    # Without locks (not POSIX, or a network file system) the rename alone keeps files whole; two
    # processes may then fetch the same thing.
    with (folder / ".lock").open("a") as stream:
        locked = False
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
            locked = True
        yield locked  # closing the file gives the lock back
