"""Data sets: real ones by name from whichever source answers, and the forged ones."""

from lipvae.data.errors import (
    Attempt,
    CorruptFileError,
    CorruptFileWarning,
    DataUnavailableError,
    SourceError,
)
from lipvae.data.fetching import SOURCE_NAMES, fetch
from lipvae.data.forged import near_black, near_white, photo_patches
from lipvae.data.images import ImageSet
from lipvae.data.listing import Row, describe
from lipvae.data.sets import NAMES, load
from lipvae.data.store import cache_root

__all__ = [
    "NAMES",
    "SOURCE_NAMES",
    "Attempt",
    "CorruptFileError",
    "CorruptFileWarning",
    "DataUnavailableError",
    "ImageSet",
    "Row",
    "SourceError",
    "cache_root",
    "describe",
    "fetch",
    "load",
    "near_black",
    "near_white",
    "photo_patches",
]
