"""The file formats: what is written is read, and damage is named."""

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lipvae.data import formats
from lipvae.data.errors import CorruptFileError


def as_bytes(data):
    return np.frombuffer(bytearray(data), np.uint8)


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_idx_reads_what_was_written():
    array = np.arange(24).reshape(2, 3, 4)
    assert (formats.parse_idx(as_bytes(idx(array)), "x") == array).all()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda b: b[:-1], "x is truncated: 39 bytes"),
        (lambda b: b + b"\0", "x is too long: 41 bytes"),
        (lambda b: b[:9], "truncated inside its header"),
        (lambda b: b"\x1f\x8b" + b[2:], "not an IDX file: it starts with 1f8b0803"),
        (lambda b: b"", "it starts with nothing"),
        (lambda b: b"\0\0\x0d" + b[3:], "type code 0x0d"),
        # A dimension beyond any memory must not overflow the check.
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "truncated"),
    ],
)
def test_idx_says_what_is_wrong(damage, text):
    with pytest.raises(CorruptFileError, match=text):
        formats.parse_idx(as_bytes(damage(idx(np.zeros((2, 3, 4))))), "x")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda b: b[:-9], "truncated"),
        (lambda b: b[:10], "truncated"),
        (lambda b: b"no" + b[2:], "not a sound gzip"),
        (lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:], "not a sound gzip"),
        (lambda b: b[:12] + bytes([b[12] ^ 255]) + b[13:], "not a sound gzip|truncated"),
    ],
)
def test_gzip_says_what_is_wrong(damage, text):
    packed = gzip.compress(bytes(range(256)) * 9)
    assert formats.gunzip(packed, "x.gz").tobytes() == bytes(range(256)) * 9
    with pytest.raises(CorruptFileError, match=rf"x\.gz.*({text})"):
        formats.gunzip(damage(packed), "x.gz")


def cifar_pictures(count=5):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    pixels = images.transpose(0, 2, 3, 1).reshape(count, 1024, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return images, np.arange(count) % 10, buffer.getvalue()


def test_cifar_from_png_rebuilds_the_binary_batch():
    images, labels, png = cifar_pictures()
    got_images, got_labels = formats.parse_cifar(
        as_bytes(formats.cifar_from_png(png, labels, "x")), "x"
    )
    assert (got_images == images).all()
    assert (got_labels == labels).all()


def test_cifar_says_what_is_wrong():
    _, labels, png = cifar_pictures()
    with pytest.raises(CorruptFileError, match="x has 3072 bytes, not a multiple of the 3073"):
        formats.parse_cifar(as_bytes(bytes(3072)), "x")
    with pytest.raises(CorruptFileError, match="has 0 bytes"):
        formats.parse_cifar(as_bytes(b""), "x")
    for damaged in (png[: len(png) // 2], b"GIF89a" + png, b""):
        with pytest.raises(CorruptFileError, match=r"x\.png is not a sound PNG"):
            formats.cifar_from_png(damaged, labels, "x.png")
    with pytest.raises(CorruptFileError, match=r"RGB picture of shape \(5, 1024, 3\)"):
        formats.cifar_from_png(png, labels[:4], "x.png")
    grey = io.BytesIO()
    Image.new("L", (1024, 5)).save(grey, "PNG")
    with pytest.raises(CorruptFileError, match="a L picture"):
        formats.cifar_from_png(grey.getvalue(), labels, "x.png")


def test_labels_json():
    assert formats.parse_labels_json(b"[0,9,3]", 3, "x").tolist() == [0, 9, 3]
    for text in (b"[0,9", b"[0,9]", b"[0,9,10]", b"[0,-1,2]", b"[0,1.5,2]", b'{"a":1}', b"\xff"):
        with pytest.raises(CorruptFileError, match=r"^x is not"):
            formats.parse_labels_json(text, 3, "x")


def matlab(**arrays):
    buffer = io.BytesIO()
    savemat(buffer, arrays, do_compression=True)
    return buffer.getvalue()


def test_svhn_transposes_and_turns_ten_into_zero():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    labels = np.array([[1], [10], [9], [10]], np.uint8)
    images, got = formats.parse_svhn(as_bytes(matlab(X=pixels, y=labels)), "x")
    assert got.tolist() == [1, 0, 9, 0]
    assert (images[2, 1] == pixels[:, :, 1, 2]).all()


def test_svhn_says_what_is_wrong():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    labels = np.ones((4, 1), np.uint8)
    sound = matlab(X=pixels, y=labels)
    for damaged in (sound[:300], sound[:150] + b"\xff" * 40 + sound[190:], b"", b"junk" * 100):
        with pytest.raises(CorruptFileError, match=r"^x is not a sound MATLAB"):
            formats.parse_svhn(as_bytes(damaged), "x")
    with pytest.raises(CorruptFileError, match="lacks the arrays X and y"):
        formats.parse_svhn(as_bytes(matlab(X=pixels)), "x")
    with pytest.raises(CorruptFileError, match="3 labels"):
        formats.parse_svhn(as_bytes(matlab(X=pixels, y=labels[:3])), "x")
    with pytest.raises(CorruptFileError, match="float64"):
        formats.parse_svhn(as_bytes(matlab(X=pixels.astype(float), y=labels)), "x")


def test_unlabelled_archive(tmp_path):
    path = tmp_path / "a.npz"
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    np.savez_compressed(path, images=images, labels=np.full(2, 255, np.uint8))
    got, labels = formats.read_unlabelled(path, (1, 28, 28))
    assert labels is None
    assert (got[:, 0] == images).all()
    np.savez(path, images=images, labels=np.array([3, 255], np.uint8))
    assert formats.read_unlabelled(path, (1, 28, 28))[1].tolist() == [3, 255]
    np.savez(path, images=images)
    assert formats.read_unlabelled(path, (1, 28, 28))[1] is None

    damaged = path.read_bytes()
    for content in (damaged[:200], b"", b"PK" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"a\.npz is not a sound"):
            formats.read_unlabelled(path, (1, 28, 28))
    for arrays, text in (
        ({"pictures": images}, "no array named 'images'"),
        ({"images": images.astype(float)}, "float64"),
        ({"images": images[:, :8, :8]}, r"\(2, 8, 8\)"),
        ({"images": images, "labels": np.zeros(3)}, r"labels \(3,\)"),
        # A pickled object must be refused, not loaded.
        ({"images": np.array([{}], dtype=object)}, "not a sound"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(CorruptFileError, match=text):
            formats.read_unlabelled(path, (1, 28, 28))
