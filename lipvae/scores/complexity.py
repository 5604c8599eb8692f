"""The likelihood corrected by an input's own complexity, equation (7)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image, features
from torch import Tensor

from lipvae._validate import check_tensor, describe
from lipvae.scores._evidence import Evidence
from lipvae.scores._score import Score
from lipvae.scores.confounds import to_levels

# Bits by which a density over [0, 1] overstates the probability of one of the 256 levels, whose
# distance is 1/255.
_BITS_OF_A_LEVEL = math.log2(255)
_DENSITIES = ("continuous_bernoulli", "gaussian")

# Below this, starting threads costs more than the work.
_THREADED = 64


def _png(image: Image.Image) -> int:
    return _size(image, "PNG", optimize=True)


def _jpeg_2000(image: Image.Image) -> int:
    # The codec refuses more resolutions than the shorter side can be halved.
    resolutions = min(6, min(image.size).bit_length())
    return _size(image, "JPEG2000", irreversible=False, num_resolutions=resolutions)


def _webp(image: Image.Image) -> int:
    return _size(image, "WEBP", lossless=True, quality=100, method=6, exact=True)


# Name, the feature of Pillow that it needs, and the size in bytes of a lossless file.
CODECS: dict[str, tuple[str, Callable[[Image.Image], int]]] = {
    "PNG": ("zlib", _png),
    "JPEG 2000": ("jpg_2000", _jpeg_2000),
    "WebP": ("webp", _webp),
}


def _size(image: Image.Image, kind: str, **options: object) -> int:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getbuffer().nbytes


def code_length(images: Tensor) -> Tensor:
    """L(x): bits of the smallest lossless file among PNG, JPEG 2000 and WebP.

    Args:
        images: [B, C, H, W] in [0, 1], taken to the nearest of 256 levels. Three channels are
            coded as one colour image, any other number one by one.

    Returns:
        float64 [B], a multiple of 8, on the device of `images`.

    Raises:
        TypeError, ValueError: if `images` is not such a tensor.
        RuntimeError: if this Pillow was built without one of the codecs.

    Source: Serra et al. 2020, section 3.

    Example:
        >>> flat, noise = torch.zeros(1, 1, 16, 16), torch.rand(1, 1, 16, 16)
        >>> bool((code_length(flat) < code_length(noise)).all())
        True
    """
    check_tensor("images", images, dim=4)
    if not len(images):
        raise ValueError(f"images must hold at least one image, got {describe(images)}")
    for name, (feature, _) in CODECS.items():
        if not features.check(feature):
            raise RuntimeError(
                f"input complexity needs a Pillow with {name}, as its published wheels have it"
            )
    levels = to_levels(images).cpu()
    if levels.shape[1] == 3:
        planes = [[Image.fromarray(rgb)] for rgb in levels.permute(0, 2, 3, 1).numpy()]
    else:
        planes = [[Image.fromarray(plane) for plane in image] for image in levels.numpy()]
    if len(planes) < _THREADED:
        lengths = [_bits(image) for image in planes]
    else:  # the codecs release the interpreter's lock
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            lengths = list(pool.map(_bits, planes, chunksize=16))
    return torch.tensor(lengths, dtype=torch.float64, device=images.device)


def _bits(planes: list[Image.Image]) -> int:
    return sum(8 * min(size(plane) for _, size in CODECS.values()) for plane in planes)


def bits(log_likelihood: Tensor, family: str, dimensions: int) -> Tensor:
    r"""-log2 p(x) in bits, from log p(x) in nats.

    Families of 256 levels give probabilities. A density over [0, 1] is turned into the
    probability of a level by its width, 1/255 in each dimension, which shifts all images alike.
    The Bernoulli of grey pixels is no distribution over the levels: its "bits" are those of
    black-and-white images with these means, and it enters as the paper has it.

    Args:
        log_likelihood: log p(x), in nats.
        family: the likelihood's name.
        dimensions: D.
    """
    found = -log_likelihood / math.log(2)
    return found + dimensions * _BITS_OF_A_LEVEL if family in _DENSITIES else found


def input_complexity(evidence: Evidence) -> Tensor:
    r"""Input complexity: :math:`-\log_2 p(x) - L(x)`, in bits.

    L(x) is the length of the best lossless code among PNG, JPEG 2000 and WebP
    (:func:`code_length`), p(x) is importance-sampled (see :func:`bits` for what it is a
    probability of). Read as a likelihood ratio between the compressor and the model. Paper's
    orientation: higher for outliers; kept.

    Source: Serra et al. 2020, equation 3; Glazunov & Zarras 2023, section 5.
    """
    model = evidence.model
    found = bits(evidence.statistics.is_log_likelihood, model.likelihood.name, model.input_size)
    return found - code_length(evidence.images)


SCORES = (
    Score("input_complexity", "Input complexity", input_complexity, "outlier", source="evidence"),
)
