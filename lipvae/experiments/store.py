"""Results on disk, keyed by the configuration they come from."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lipvae.persistence import read_archive, write_archive

# Raised when the meaning of a stored result changes, so that old ones are not taken for new.
GENERATION = 1


def key_of(label: str, configuration: Mapping[str, Any]) -> str:
    """A file name: a label to read, and a digest of everything that the result depends on.

    Example:
        >>> key_of("mnist-vanilla-s0", {"epochs": 3}) != key_of("mnist-vanilla-s0", {"epochs": 4})
        True
    """
    text = json.dumps([GENERATION, configuration], sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; NaN becomes null, which JSON knows."""
    write_text(path, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    return value


def read_json(path: Path) -> Any:
    """Reads JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Writes named tensors, whole or not at all, with the configuration beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    write_archive(path, "scores", contiguous, content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads what `write_tensors` wrote."""
    return read_archive(path)[1]


def read_content(path: Path) -> dict[str, Any]:
    """Reads the configuration beside the tensors."""
    return read_archive(path)[2]
