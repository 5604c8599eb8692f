"""Fetching from a folder, the cache and a mirror: order, damage, interruption, races."""

import gzip
import pickle
import signal
import socket
import subprocess
import sys
import time

import pytest

import lipvae.data
from lipvae.data import registry, sources
from lipvae.data.errors import CorruptFileWarning, DataUnavailableError
from lipvae.data.registry import DataFile


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sub", ["tiny", "Tiny/raw", "."])
def test_a_local_folder_is_used_where_it_lies(tiny, tmp_path, monkeypatch, packed, sub):
    tiny.register(tiny.define())
    tiny.put(tmp_path / "root" / sub, packed)
    got = tiny.check("train", root=tmp_path / "root", download=False)
    assert got.source.startswith("folder ")
    monkeypatch.setenv("LIPVAE_DATA", str(tmp_path / "root"))
    tiny.check("test", download=False)
    assert tiny.cached() == []


def test_repacked_archives_are_judged_by_their_content(tiny, tmp_path):
    tiny.register(tiny.define())
    tiny.put(tmp_path / "root", packed=True, level=1)
    tiny.check("test", root=tmp_path / "root", download=False)


def test_the_folder_comes_before_the_cache_unless_told_otherwise(tiny, tmp_path, monkeypatch):
    tiny.register(tiny.define())
    tiny.put(tiny.cache)
    tiny.put(tmp_path / "root" / "tiny")
    assert tiny.check("test", root=tmp_path / "root").source.startswith("folder")
    monkeypatch.setenv("LIPVAE_DATA_SOURCES", "cache, folder")
    assert tiny.check("test", root=tmp_path / "root").source.startswith("cache")
    monkeypatch.setenv("LIPVAE_DATA_SOURCES", "folder")
    with pytest.raises(DataUnavailableError) as caught:
        lipvae.data.load("tiny", "test")
    assert [a.source for a in caught.value.attempts] == ["folder"]


def test_the_mirror_fills_the_cache_once(tiny, mirror):
    tiny.register(tiny.define([mirror.url]))
    got = tiny.check("test")
    assert got.source == "the official mirror"
    assert tiny.cached() == ["tiny-test-images", "tiny-test-labels"]
    assert (tiny.cache / "tiny-test-images").read_bytes() == tiny.content["tiny-test-images"]
    asked = len(mirror.seen)
    assert tiny.check("test").source == f"cache {tiny.cache}"
    assert len(mirror.seen) == asked
    paths = lipvae.data.fetch("tiny", progress=False)
    assert paths == {name: tiny.cache / name for name in tiny.content}


def test_a_dead_mirror_is_passed_over(tiny, mirror, capsys):
    tiny.register(tiny.define(["http://127.0.0.1:9/", mirror.url]))
    lipvae.data.fetch("tiny", progress=True)
    assert "tiny: trying the official mirror" in capsys.readouterr().err
    tiny.check("train", download=False)


def test_content_whose_digest_is_known_only_packed_is_kept_packed(tiny, mirror):
    tiny.register(tiny.define([mirror.url], splits=tiny.unsummed()))
    tiny.check("train")
    assert tiny.cached() == ["tiny-train-images.gz", "tiny-train-labels.gz"]
    assert "not checked" not in tiny.check("train", download=False).source


def test_decompressed_files_that_nothing_vouches_for(tiny, tmp_path, monkeypatch):
    plain = tiny.define()
    tiny.register(tiny.define(splits=tiny.unsummed()))
    tiny.put(tmp_path / "root")
    with pytest.raises(DataUnavailableError, match="cannot be told from another set's: put it in"):
        lipvae.data.load("tiny", root=tmp_path / "root", download=False)
    tiny.put(tmp_path / "root" / "tiny")
    assert "not checked" in tiny.check("train", root=tmp_path / "root", download=False).source
    # The same bytes under another set's name are that set's, not this one's.
    monkeypatch.setitem(registry.REGISTRY, "other", plain)
    with pytest.raises(DataUnavailableError, match="is the file of another data set"):
        lipvae.data.load("tiny", root=tmp_path / "root", download=False)


DAMAGE = {
    "truncated": lambda b: b[:-3],
    "too long": lambda b: b + b"\0",
    "damaged or altered": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("where", ["folder", "cache"])
def test_a_damaged_file_is_passed_over_with_a_warning(tiny, tmp_path, mirror, kind, where):
    tiny.register(tiny.define([mirror.url]))
    folder = tiny.put(tmp_path / "root" / "tiny" if where == "folder" else tiny.cache)
    path = folder / "tiny-test-images"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    options = {"root": tmp_path / "root"} if where == "folder" else {}
    with pytest.warns(CorruptFileWarning, match=f"{path}.*{kind}"):
        tiny.check("test", **options)
    if where == "cache":  # mended
        tiny.check("test", download=False)


def test_nothing_works_and_the_error_says_all(tiny, tmp_path, monkeypatch):
    tiny.register(tiny.define())
    tiny.put(tiny.cache, names=["tiny-test-images"])
    (tiny.cache / "tiny-test-images").write_bytes(b"short")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataUnavailableError) as caught:
        lipvae.data.load("tiny", "test", root=tmp_path)
    error, text = caught.value, str(caught.value)
    assert error.missing == ("tiny-test-images", "tiny-test-labels")
    assert [a.source for a in error.attempts] == [
        *("folder", "folder", "cache", "cache", "official", "apt", "npm")
    ]
    for part in (
        "data set 'tiny' is not available",
        f"folder: tiny-test-images: not found in {tmp_path}",
        f"{tiny.cache / 'tiny-test-images'} is truncated: 5 bytes, expected {16 + 48}",
        "official: tiny-test-images, tiny-test-labels: http://127.0.0.1:9/tiny-test-images.gz",
        "connection refused",
        "put tiny-train-images.gz",
        "set LIPVAE_DATA=FOLDER",
    ):
        assert part in text


def test_the_file_of_another_set_is_named(tiny, tmp_path, monkeypatch):
    tiny.register(tiny.define())
    other = {
        split: tuple(DataFile(f.name, f.size, "0" * 64) for f in files)
        for split, files in tiny.define().splits.items()
    }
    monkeypatch.setitem(registry.REGISTRY, "other", tiny.define(name="other", splits=other))
    with pytest.raises(DataUnavailableError, match="it is the file of tiny"):
        lipvae.data.load("other", "test", root=tiny.put(tmp_path / "root"), download=False)


def test_a_mirror_with_other_content_is_refused(tiny, mirror):
    tiny.register(tiny.define([mirror.url]))
    (mirror.folder / "tiny-test-labels.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataUnavailableError, match=r"tiny-test-labels.gz.*hash"):
        lipvae.data.load("tiny", "test")
    assert tiny.cached() == ["tiny-test-images"]


def test_a_broken_connection_leaves_no_half_file(tiny, mirror):
    tiny.register(tiny.define([mirror.url]))
    mirror.cut = True
    with pytest.raises(DataUnavailableError, match=r"tiny-test-images\.gz"):
        lipvae.data.load("tiny", "test")
    assert tiny.cached() == []
    mirror.cut = False
    tiny.check("test")


def test_ctrl_c_leaves_nothing(tiny, monkeypatch):
    tiny.register(tiny.define())

    def interrupted(dataset, wanted, work, progress):
        path = work / wanted[0].name
        path.write_bytes(tiny.content[wanted[0].name])
        yield wanted[0], path
        (work / wanted[1].name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(sources.SOURCES, "official", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lipvae.data.fetch("tiny", progress=False)
    assert tiny.cached() == ["tiny-train-images"]


CHILD = """
import pickle, sys
from lipvae.data import fetch, registry
dataset = pickle.loads(bytes.fromhex(sys.argv[1]))
registry.REGISTRY[dataset.name] = dataset
fetch(dataset.name, progress=False)
"""


def child(dataset):
    return subprocess.Popen([sys.executable, "-c", CHILD, pickle.dumps(dataset).hex()])


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_process_leaves_no_half_file_and_no_rubbish(tiny, mirror):
    dataset = tiny.register(tiny.define([mirror.url]))
    mirror.delay = 0.4
    process = child(dataset)
    wait_for(lambda: len(mirror.seen) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = tiny.cached()
    assert any(name.startswith(".fetch-") for name in left)
    for name in tiny.content:
        path = tiny.cache / name
        assert not path.exists() or path.read_bytes() == tiny.content[name]
    mirror.delay = 0.0
    lipvae.data.fetch("tiny", progress=False)
    assert tiny.cached() == sorted(tiny.content)


def test_processes_that_fetch_at_once_do_the_work_once(tiny, mirror):
    dataset = tiny.register(tiny.define([mirror.url]))
    mirror.delay = 0.3
    processes = [child(dataset) for _ in range(3)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0, 0]
    assert tiny.cached() == sorted(tiny.content)
    assert len(mirror.seen) == 1 + len(
        tiny.content
    )  # one question whether it answers, then each file


def test_a_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch, mirror):
    tiny.register(tiny.define([mirror.url]))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LIPVAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataUnavailableError, match=r"cannot be written.*set LIPVAE_CACHE"):
        lipvae.data.load("tiny", "test")


def test_a_host_that_never_answers_costs_the_time_limit():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        start = time.monotonic()
        answers = sources.reachable([url + "a", url + "b", "http://127.0.0.1:9/"], 0.3)
        assert time.monotonic() - start < 3
    assert "timed out" in answers[url + "a"]
    assert answers["http://127.0.0.1:9/"] == "connection refused"
