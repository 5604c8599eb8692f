"""Readers of arrays, image folders and data sets."""

from __future__ import annotations

import io
import os
import socket
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lipvae import data
from lipvae.inputs import UnreadableError, open_inputs, printable, read_all

RNG = np.random.Generator(np.random.PCG64(0))
GREY = RNG.integers(0, 256, (7, 1, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (7, 3, 6, 5), dtype=np.uint8)


def as_float(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))


def save(pixels: np.ndarray, path: Path, **options: object) -> None:
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        path, **options
    )


def test_a_picture_that_was_stored_turned_is_turned_back(tmp_path: Path) -> None:
    upright = GREY[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    save(np.rot90(upright, 1, (1, 2)), tmp_path / "a.png", exif=exif)
    save(upright, tmp_path / "b.png")
    for shape in (None, (1, 6, 5)):
        found = read_all(open_inputs(tmp_path, shape))
        assert torch.equal(found[0], found[1])


def test_a_folder_with_colour_anywhere_is_colour(tmp_path: Path) -> None:
    save(GREY[0], tmp_path / "0.png")
    save(COLOUR[0], tmp_path / "1.png")
    found = read_all(open_inputs(tmp_path, None))
    assert torch.equal(found, as_float(np.stack([GREY[0].repeat(3, 0), COLOUR[0]])))
    assert open_inputs(tmp_path / "0.png", None).shape == (1, 6, 5)


def test_a_file_of_several_images_is_refused(tmp_path: Path) -> None:
    first, second = (Image.fromarray(grey[0]) for grey in GREY[:2])
    first.save(tmp_path / "stack.tif", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=r"stack\.tif holds 2 images"):
        read_all(open_inputs(tmp_path, (1, 6, 5)))


@pytest.mark.parametrize(
    ("array", "shape", "expected"),
    [
        (GREY, (1, 6, 5), GREY),
        (GREY[:, 0], (1, 6, 5), GREY),
        (GREY.reshape(7, -1), (1, 6, 5), GREY),
        (GREY.transpose(0, 2, 3, 1), (1, 6, 5), GREY),
        (COLOUR, (3, 6, 5), COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), (3, 6, 5), COLOUR),
        (COLOUR.reshape(7, -1), (3, 6, 5), COLOUR),
        (GREY, None, GREY),
        (GREY[:, 0], None, GREY),
        (COLOUR, None, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), None, COLOUR),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])
def test_layouts(tmp_path: Path, kind: str, array: np.ndarray, shape, expected) -> None:
    array = np.ascontiguousarray(array)
    if kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, array)
    else:
        path = tmp_path / "a.npz"
        (np.savez if kind == "npz" else np.savez_compressed)(path, array)
    inputs = open_inputs(path, shape)
    assert inputs.shape == expected.shape[1:]
    assert len(inputs) == 7
    batches = list(inputs.batches(3))
    assert [len(batch.ids) for batch in batches] == [3, 3, 1]
    assert [i for batch in batches for i in batch.ids] == [str(i) for i in range(7)]
    assert all(batch.images.is_contiguous() for batch in batches)
    assert torch.equal(torch.cat([batch.images for batch in batches]), as_float(expected))
    assert torch.equal(read_all(inputs), as_float(expected))  # a second pass starts again


def test_channels_first_wins_where_both_layouts_fit(tmp_path: Path) -> None:
    array = RNG.random((2, 3, 3, 3), dtype=np.float32)
    np.save(tmp_path / "a.npy", array)
    assert torch.equal(read_all(open_inputs(tmp_path / "a.npy", (3, 3, 3))), torch.tensor(array))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floats_pass_through(tmp_path: Path, dtype: str) -> None:
    array = RNG.random((4, 2, 3)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    got = read_all(open_inputs(tmp_path / "a.npy", (1, 2, 3)))
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy()[:, 0], array.astype(np.float32))


def test_fortran_order_is_mapped_from_npy_and_refused_in_npz(tmp_path: Path) -> None:
    array = np.asfortranarray(GREY)
    np.save(tmp_path / "a.npy", array)
    assert torch.equal(read_all(open_inputs(tmp_path / "a.npy")), as_float(GREY))
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(ValueError, match="Fortran order"):
        open_inputs(tmp_path / "a.npz")


def test_npz_key(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, first=GREY, second=GREY[:2])
    assert len(open_inputs(f"{path}:second")) == 2
    with pytest.raises(ValueError, match=r"several arrays.*first, second"):
        open_inputs(path)
    with pytest.raises(ValueError, match="no array 'third'"):
        open_inputs(f"{path}:third")
    np.savez(path, y=np.arange(7), x=GREY)
    assert len(open_inputs(path)) == 7


def test_npz_reads_any_range(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", GREY)
    inputs = open_inputs(tmp_path / "a.npz")
    for start, stop in ((5, 7), (1, 3), (3, 4), (0, 7)):
        assert torch.equal(inputs.read(start, stop).images, as_float(GREY[start:stop]))


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_batch_is_all_that_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    array = np.zeros((20_000, 28, 28), np.uint8)  # 15.7 MB; a batch of 64 is 0.2 MB as float32
    np.save(path, array) if kind == "npy" else np.savez_compressed(path, array)
    del array
    inputs = open_inputs(path, (1, 28, 28))
    tracemalloc.start()
    count = sum(len(batch.ids) for batch in inputs.batches(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 3e6


def test_image_folder(tmp_path: Path) -> None:
    for i, name in enumerate(["b.png", "a.png", "sub/c.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(GREY[i, 0]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    batch = open_inputs(tmp_path, (1, 6, 5)).read(0, 3)
    assert batch.ids == ["a.png", "b.png", "sub/c.png"]
    assert torch.equal(batch.images, as_float(GREY[[1, 0, 2]]))
    assert open_inputs(tmp_path).shape == (1, 6, 5)
    colour = open_inputs(tmp_path, (3, 6, 5)).read(0, 1).images
    assert torch.equal(colour, as_float(GREY[[1]]).expand(1, 3, 6, 5))
    assert open_inputs(tmp_path / "a.png").read(0, 1).ids == ["a.png"]


def test_colour_images(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR[0].transpose(1, 2, 0))
    image.save(tmp_path / "a.png")
    image.convert("RGBA").save(tmp_path / "b.png")  # opaque
    images = read_all(open_inputs(tmp_path))
    assert torch.equal(images, as_float(COLOUR[[0, 0]]))
    grey = read_all(open_inputs(tmp_path / "a.png", (1, 6, 5)))
    assert torch.equal(grey[0], as_float(np.asarray(image.convert("L"))[None]))


def test_resize_only_when_asked(tmp_path: Path) -> None:
    Image.fromarray(GREY[0, 0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png must be 8x8 pixels.*got 6x5"):
        read_all(open_inputs(tmp_path, (1, 8, 8)))
    assert read_all(open_inputs(tmp_path, (1, 8, 8), resize=True)).shape == (1, 1, 8, 8)


def test_images_that_would_lose_something(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="8 bits a channel"):
        open_inputs(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 7)).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="transparent"):
        open_inputs(tmp_path / "clear.png")
    Image.new("P", (4, 4)).save(tmp_path / "palette.gif.png", transparency=0)
    with pytest.raises(ValueError, match="transparent"):
        open_inputs(tmp_path / "palette.gif.png")


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    for name in ("in/b/1.png", "in/b/c/2.png", "in/a.png", "elsewhere/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "in" / "z").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in" / "b")
    (batch,) = open_inputs(tmp_path / "in").batches(10)
    assert batch.ids == [
        "a.png", "b/1.png", "b/c/2.png", "z/3.png", "z/back/1.png", "z/back/c/2.png",
    ]  # fmt: skip


def test_a_shape_is_that_of_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    Image.new("L", (4, 5)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        open_inputs(tmp_path)
    inputs = open_inputs(tmp_path, skip_unreadable=True)
    assert inputs.shape == (1, 5, 4)
    (batch,) = inputs.batches(1)
    assert batch.ids == ["b.png"]
    assert [reason.split(" cannot")[0] for reason in inputs.skipped] == [str(tmp_path / "a.png")]
    (tmp_path / "b.png").write_text("nor this")
    with pytest.raises(ValueError, match="holds no image that can be read"):
        open_inputs(tmp_path, skip_unreadable=True)


def test_an_image_that_is_far_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: Image size"):
        open_inputs(tmp_path)


def test_broken_image_names_its_file(tmp_path: Path) -> None:
    Image.fromarray(COLOUR[0].transpose(1, 2, 0)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:80])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.png", "text.jpg"):
        with pytest.raises(ValueError, match=name):
            read_all(open_inputs(tmp_path / name))


def dds_of_no_format() -> bytes:
    header = struct.pack("<7I", 124, 0x1007, 6, 5, 0, 0, 0) + bytes(44)
    pixel_format = struct.pack("<8I", 32, 0, 0, 0, 0, 0, 0, 0)
    return b"DDS " + header + pixel_format + bytes(20)


def tiff_with_a_fraction(tag: int) -> bytes:
    """A TIFF file where a size or a position is not a whole number."""
    stream = io.BytesIO()
    Image.fromarray(GREY[0, 0]).save(stream, "TIFF")
    content = bytearray(stream.getvalue())
    entry = next(
        content.index(struct.pack("<HH", tag, kind))
        for kind in (3, 4)
        if struct.pack("<HH", tag, kind) in content
    )
    content[entry + 2] = 5
    return bytes(content)


ODD = {  # Pillow 13 raises
    "a.png": dds_of_no_format(),  # NotImplementedError
    "a.tif": tiff_with_a_fraction(273),  # TypeError
    "b.tif": tiff_with_a_fraction(256),  # ValueError
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_pillow_raises_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ODD[name])
    for shape in (None, (1, 6, 5)):
        with pytest.raises(UnreadableError, match=f"{name} cannot be read as an image: ."):
            read_all(open_inputs(tmp_path, shape))
    save(GREY[0], tmp_path / "z.png")
    inputs = open_inputs(tmp_path, (1, 6, 5), skip_unreadable=True)
    assert [batch.ids for batch in inputs.batches(9)] == [["z.png"]]


def test_a_reason_is_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> None:
        raise KeyError

    save(GREY[0], tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnreadableError, match=r"a\.png cannot be read as an image: KeyError"):
        read_all(open_inputs(tmp_path, (1, 6, 5)))


def test_a_full_memory_is_not_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path) -> None:
        raise MemoryError

    save(GREY[0], tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read_all(open_inputs(tmp_path, (1, 6, 5), skip_unreadable=True))


def test_one_damaged_file_is_skipped_like_one_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    inputs = open_inputs(tmp_path / "a.png", (1, 6, 5), skip_unreadable=True)
    with pytest.raises(UnreadableError, match="holds no image that can be read"):
        read_all(inputs)
    assert len(inputs.skipped) == 1


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xfe")
    folder.mkdir()
    save(GREY[0], folder / os.fsdecode(b"bad\xff.png"))
    save(GREY[1], folder / "ü.png")
    inputs = open_inputs(folder)
    (batch,) = inputs.batches(9)
    assert batch.ids == [r"bad\xff.png", "ü.png"]
    assert inputs.name == rf"{tmp_path}/f\xfe"
    assert printable(Path("ü")) == "ü"


def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda file: pytest.fail("this would wait for a writer"))
        for shape in (None, (1, 6, 5)):
            with pytest.raises(UnreadableError, match=r"link\.png must be a file, got a pipe"):
                read_all(open_inputs(tmp_path, shape))
    save(GREY[0], tmp_path / "a.png")
    inputs = open_inputs(tmp_path, skip_unreadable=True)
    assert torch.equal(read_all(inputs), as_float(GREY[:1]))
    assert [Path(reason.split(" must")[0]).name for reason in inputs.skipped] == [
        "link.png", "pipe.png", "socket.png",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must be a file or a folder, got a pipe"):
        open_inputs(tmp_path / "pipe.png")


def test_folders_that_cannot_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "closed/b.png", "half/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(GREY[0], tmp_path / name)
    listed, told = Path.iterdir, Path.is_dir

    def iterdir(path: Path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    def is_dir(path: Path) -> bool:
        if path.parent.name == "half":  # may be listed, but nothing in it may be told
            raise PermissionError(13, "Permission denied", str(path))
        return told(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(Path, "is_dir", is_dir)
    with pytest.raises(UnreadableError, match="closed cannot be searched: Permission denied"):
        open_inputs(tmp_path, (1, 6, 5))
    inputs = open_inputs(tmp_path, (1, 6, 5), skip_unreadable=True)
    for _ in range(2):  # a second pass names them too
        assert [batch.ids for batch in inputs.batches(9)] == [["a.png"]]
        assert inputs.skipped == [
            f"{tmp_path}/closed cannot be searched: Permission denied",
            f"{tmp_path}/half/c.png cannot be read: Permission denied",
        ]
    with pytest.raises(UnreadableError, match="closed cannot be searched"):
        open_inputs(tmp_path / "closed", (1, 6, 5), skip_unreadable=True)


def deep_png(colour_type: int, channels: int) -> bytes:
    """A 16-bit PNG, which Pillow does not write."""
    rows = (b"\0" + bytes(range(5 * 2 * channels))) * 6

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", 5, 6, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def deep_tiff() -> bytes:
    """16-bit colour without compression."""
    tags = [
        (256, 3, 1, 5), (257, 3, 1, 6), (258, 3, 3, 8 + 2 + 9 * 12 + 4), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, 128 + 8), (277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, 180),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    content = (
        b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack("<3H", 16, 16, 16)
    )
    return content.ljust(136, b"\0") + bytes(180)


DEEP = {
    "grey.png": deep_png(0, 1),
    "colour.png": deep_png(2, 3),
    "grey-alpha.png": deep_png(4, 2),
    "colour-alpha.png": deep_png(6, 4),
    "colour.tif": deep_tiff(),
    "colour.ppm": b"P6 5 6 65535\n" + bytes(180),
    "plain.ppm": b"P3 5 6 1023\n" + b"1000 " * 90,
}


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_are_not_cut_to_eight(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DEEP[name])
    for shape in (None, (3, 6, 5), (1, 6, 5)):
        with pytest.raises(UnreadableError, match=f"{name} must have 8 bits a channel, got m"):
            read_all(open_inputs(tmp_path, shape))


def test_fewer_than_eight_bits_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 15\n" + bytes([0, 5, 15]))
    found = read_all(open_inputs(tmp_path))
    assert torch.equal(found, as_float(np.array([0, 85, 255]).reshape(1, 3, 1, 1)))
    # Five or six bits a channel, 16 a pixel.
    header = struct.pack("<IiiHHIIiiII", 40, 5, 6, 1, 16, 3, 72, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    size = 14 + len(header) + len(masks) + 72
    start = struct.pack("<2sIHHI", b"BM", size, 0, 0, size - 72)
    (tmp_path / "a.ppm").unlink()
    (tmp_path / "a.bmp").write_bytes(start + header + masks + b"\xff" * 72)
    assert read_all(open_inputs(tmp_path)).eq(1).all()


def test_a_grey_folder_with_a_deep_file_is_grey(tmp_path: Path) -> None:
    save(GREY[0], tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(deep_png(0, 1))
    assert open_inputs(tmp_path, skip_unreadable=True).shape == (1, 6, 5)


def test_resizing_without_a_model_takes_the_first_size(tmp_path: Path) -> None:
    save(GREY[0], tmp_path / "a.png")
    Image.new("L", (20, 30)).save(tmp_path / "b.png")
    assert read_all(open_inputs(tmp_path, resize=True)).shape == (2, 1, 6, 5)


def test_data_sets_by_name() -> None:
    for name, split in (("digits", "test"), ("digits:test", "train"), ("digits:train", "test")):
        expected = data.load("digits", name.partition(":")[2] or split).float()
        assert torch.equal(read_all(open_inputs(name, (1, 8, 8), split=split)), expected)
    assert open_inputs("near-black", (3, 4, 5)).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 2, 2), 2.0), r"\[0, 1\].*image 0.*divide"),
        (np.array([[[0.0]], [[-0.5]]]), r"\[0, 1\], got \[-0.5, -0.5\] in image 1"),
        (np.array([[[0.0]], [[np.nan]]]), "finite.*image 1"),
        (np.array([[[0.0]], [[np.inf]]]), "finite.*image 1"),
        (np.zeros((3, 2, 2), np.int64), "uint8.*int64"),
        (np.zeros((3, 2, 2), bool), "uint8.*bool"),
        (np.zeros((0, 2, 2)), "no images"),
        (np.zeros((3, 4)), "must be"),
        (np.zeros((3, 4, 2, 2)), "must be"),
        (np.float64(1), "single number"),
        (np.array([{}]), "cannot be read"),
    ],
)
def test_bad_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(open_inputs(tmp_path / "bad.npy"), 2)
    assert "bad.npy" in str(caught.value)


def test_an_error_counts_images_from_the_start(tmp_path: Path) -> None:
    array = np.zeros((10, 2, 2))
    array[7] = 3
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match="image 7"):
        read_all(open_inputs(tmp_path / "a.npy"), 4)


def test_wrong_shape_for_the_model(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(ValueError, match=r"\(1, 28, 28\).*\(7, 1, 6, 5\)"):
        open_inputs(tmp_path / "a.npy", (1, 28, 28))
    with pytest.raises(ValueError, match=r"digits.*\(1, 28, 28\)"):
        open_inputs("digits", (1, 28, 28))


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"nothing")
    (tmp_path / "a.npz").write_bytes(b"nothing")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("a.npy", "a.npz", "empty.npy"):
        with pytest.raises(ValueError, match=name):
            open_inputs(tmp_path / name)
    np.savez(tmp_path / "flip.npz", GREY)
    raw = bytearray((tmp_path / "flip.npz").read_bytes())
    raw[raw.index(GREY.tobytes()) + 5] ^= 1
    (tmp_path / "flip.npz").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        read_all(open_inputs(tmp_path / "flip.npz"))
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        np.save(tmp_path / "whole.npy", GREY)
        archive.writestr("x.npy", (tmp_path / "whole.npy").read_bytes()[:-40])
    with pytest.raises(ValueError, match="truncated"):
        read_all(open_inputs(tmp_path / "short.npz"))
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match="it has: none"):
        open_inputs(tmp_path / "none.npz")


def altered(path: Path, local: int, central: int, value: int) -> None:
    """Sets a field in both headers of an archive's only member."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        struct.pack_into("<H", content, content.index(signature) + offset, value)
    path.write_bytes(content)


def test_archives_that_python_cannot_open(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=GREY)
    altered(path, 8, 10, 9)  # Deflate64
    message = r"a\.npz:x cannot be read as an array: That compression method is not supported"
    with pytest.raises(ValueError, match=message):
        open_inputs(path)
    np.savez_compressed(path, x=GREY)
    altered(path, 6, 8, 1)
    with pytest.raises(ValueError, match=r"a\.npz:x cannot be read as an array: .*encrypted"):
        open_inputs(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_every_compression_of_an_archive(tmp_path: Path, method: int) -> None:
    stream = io.BytesIO()
    np.save(stream, GREY)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", stream.getvalue())
    assert torch.equal(read_all(open_inputs(path)), as_float(GREY))
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz:x (is damaged|cannot be read)"):
        read_all(open_inputs(path))


def test_an_archive_called_npy(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", GREY)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy cannot be read as a \.npy array"):
        open_inputs(tmp_path / "a.npy")


def test_a_header_of_negative_sizes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    content = (tmp_path / "a.npy").read_bytes().replace(b"(7, 1,", b"(-7,1,")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match="damaged header"):
        open_inputs(tmp_path / "a.npz")


def test_a_header_that_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"no magic")
    with pytest.raises(ValueError, match="cannot be read as an array"):
        open_inputs(tmp_path / "a.npz")


def test_a_header_of_version_2(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array(member, GREY, version=(2, 0))
    assert torch.equal(read_all(open_inputs(tmp_path / "a.npz")), as_float(GREY))


def test_a_model_of_two_channels_takes_no_image_files(tmp_path: Path) -> None:
    Image.fromarray(GREY[0, 0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 or 3 channels, the model takes 2"):
        open_inputs(tmp_path, (2, 6, 5))


def test_limit(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    inputs = open_inputs(tmp_path / "a.npy")
    inputs.limit(3)
    assert torch.equal(read_all(inputs, 2), as_float(GREY[:3]))
    inputs.limit(None)
    inputs.limit(100)
    assert len(inputs) == 3
    with pytest.raises(ValueError, match="count"):
        inputs.limit(0)


def test_objects_in_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        open_inputs(tmp_path / "a.npz")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*mnist"):
        open_inputs("nowhere")
    with pytest.raises(FileNotFoundError, match="~no-such-user/x"):
        open_inputs("~no-such-user/x")
    with pytest.raises(ValueError, match="empty name"):  # an unset variable of a shell, not "."
        open_inputs("")
    with pytest.raises(ValueError, match="holds no images"):
        open_inputs(tmp_path)
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(ValueError, match=r"\.npy.*'\.csv'"):
        open_inputs(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="train or test"):
        open_inputs("digits:validation")
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(ValueError, match="takes a key"):
        open_inputs(f"{tmp_path}/a.npy:x")
