"""A tiny data set made here, a mirror of it on this machine, and commands that stand in."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import os
import struct
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import lipvae.data
from lipvae.data import registry
from lipvae.data.registry import DataFile, DataSet, Official

IMAGES = {
    split: np.random.default_rng(n).integers(0, 256, (n, 4, 4), dtype=np.uint8)
    for split, n in (("train", 6), ("test", 3))
}
LABELS = {split: np.arange(len(a), dtype=np.uint8) for split, a in IMAGES.items()}


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


class Tiny:
    """The set ``tiny``: six training and three test images of 4x4 pixels in IDX files."""

    content: ClassVar = {
        "tiny-train-images": idx(IMAGES["train"]),
        "tiny-train-labels": idx(LABELS["train"]),
        "tiny-test-images": idx(IMAGES["test"]),
        "tiny-test-labels": idx(LABELS["test"]),
    }

    def __init__(self, tmp_path, monkeypatch):
        self.tmp_path, self.monkeypatch = tmp_path, monkeypatch
        self.cache = tmp_path / "cache" / "tiny"

    @staticmethod
    def sha256(content):
        return hashlib.sha256(content).hexdigest()

    def define(self, mirrors=("http://127.0.0.1:9/",), **changes):
        """The data set; nothing listens at the default mirror."""
        files = {
            name: DataFile(
                name,
                len(content),
                self.sha256(content),
                "sha256:" + self.sha256(gzip.compress(content, mtime=0)),
            )
            for name, content in self.content.items()
        }
        options = {
            "name": "tiny",
            "format": "idx",
            "shape": (1, 4, 4),
            "counts": {"train": 6, "test": 3},
            "splits": {
                s: (files[f"tiny-{s}-images"], files[f"tiny-{s}-labels"]) for s in ("train", "test")
            },
            "folders": ("tiny", "Tiny/raw"),
            "licence": "none",
            "source_note": "made here",
            "official": Official(tuple(mirrors), suffix=".gz"),
        }
        return DataSet(**{**options, **changes})

    def register(self, dataset=None, **changes):
        dataset = self.define(**changes) if dataset is None else dataset
        self.monkeypatch.setitem(registry.REGISTRY, dataset.name, dataset)
        return dataset

    def unsummed(self):
        """The splits, with the digests of the packed files alone."""
        return {
            split: tuple(DataFile(f.name, f.size, None, f.packed) for f in files)
            for split, files in self.define().splits.items()
        }

    def put(self, folder, packed=False, names=None, level=9):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names or self.content:
            content = self.content[name]
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content, level, mtime=0) if packed else content)
        return folder

    def check(self, split, **options):
        """Load, compare with what was made, return."""
        got = lipvae.data.load("tiny", split, **options)
        assert (got.images[:, 0].numpy() == IMAGES[split]).all()
        assert got.labels.tolist() == LABELS[split].tolist()
        return got

    def cached(self):
        """All that lies in the cache but the lock."""
        return sorted(p.name for p in self.cache.rglob("*") if p.name != ".lock")

    def stand_in(self, name, script):
        """Put a command in front of the real one; it runs in the work folder, as that would."""
        folder = self.tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        self.monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty cache, no folder and every source, whatever the machine has."""
    monkeypatch.setenv("LIPVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIPVAE_DATA", raising=False)
    monkeypatch.delenv("LIPVAE_DATA_SOURCES", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    return Tiny(tmp_path, monkeypatch)


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.seen.append(self.path)
        time.sleep(server.delay)
        if server.cut and len(server.seen) > 1:  # the first request only asks whether it answers
            body = Path(self.directory, self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().do_GET()


@pytest.fixture
def mirror(tiny):
    """A mirror on this machine: the packed files, and what was asked of it."""
    folder = tiny.put(tiny.tmp_path / "mirror", packed=True)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    server.seen, server.delay, server.cut, server.folder = [], 0.0, False, folder
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
