"""Saving and loading: tensors as safetensors, everything else as JSON in the file's header."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from lipvae._validate import describe
from lipvae.models import MODELS, VAE, Ensemble

FORMAT = "lipvae"
VERSION = 1

StrPath = str | os.PathLike[str]


def save(model: VAE | Ensemble, path: StrPath) -> None:
    """Writes a model or an ensemble to one file: safetensors, with the configuration as JSON.

    The file appears whole or not at all.

    Args:
        model: a model of this package, or an ensemble of some.
        path: the file; its folder must exist.

    Raises:
        TypeError: for anything but a model of this package.
        OSError: if the file cannot be written.

    Example:
        >>> import lipvae, tempfile
        >>> model = lipvae.VAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lipvae.save(model, f"{folder}/model.safetensors")
        ...     lipvae.load(f"{folder}/model.safetensors").latent_dim
        2
    """
    if isinstance(model, Ensemble):
        # Members may share tensors, which safetensors refuses.
        members = list(enumerate(model.members))
        tensors = {k: v.clone() for i, m in members for k, v in model_tensors(m, f"{i}.").items()}
        content = {"members": [model_description(member) for _, member in members]}
        write_archive(path, "ensemble", tensors, content)
        return
    description = model_description(model)
    write_archive(path, "model", model_tensors(model), description)


def load(path: StrPath, device: torch.device | str = "cpu") -> VAE | Ensemble:
    """Reads what :func:`save` wrote, or the model in a checkpoint of :func:`lipvae.fit`.

    Nothing in the file is executed: it holds tensors and JSON, and names its class by a key.

    Args:
        path: the file.
        device: where the model goes, whatever it was saved from.

    Returns:
        The model, or the ensemble, in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, of another program, or of a newer version.
    """
    kind, tensors, content = read_archive(path, device)
    if kind == "checkpoint":
        prefix = "best." if any(name.startswith("best.") for name in tensors) else "model."
        tensors = select(tensors, prefix)
    elif kind == "ensemble":
        parts = [
            build_model(path, select(tensors, f"{i}."), part)
            for i, part in enumerate(content.get("members", ()))
        ]
        return Ensemble(parts).eval()
    elif kind != "model":
        raise ValueError(f"path must hold a model, got {str(path)!r}, which holds a {kind}")
    return build_model(path, tensors, content)


def model_description(model: VAE) -> dict[str, Any]:
    """The class, by its key, and the configuration of a model."""
    name = type(model).__name__
    if MODELS.get(name) is not type(model):
        known = ", ".join(MODELS)
        raise TypeError(f"model must be one of {known}, got {describe(type(model))}")
    return {"class": name, "config": model.config}


def model_tensors(model: VAE, prefix: str = "") -> dict[str, Tensor]:
    """The model's parameters, contiguous, by name."""
    state = model.state_dict()
    return {prefix + name: tensor.detach().contiguous() for name, tensor in state.items()}


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, which is cut off."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def build_model(path: StrPath, tensors: dict[str, Tensor], content: dict[str, Any]) -> VAE:
    """The model of a description and its tensors, where these live."""
    name, config = content.get("class"), content.get("config")
    if name not in MODELS or not isinstance(config, dict):
        raise ValueError(
            f"{str(path)!r} must hold one of {', '.join(MODELS)}, got class {name!r}; it may be "
            "of a newer lipvae"
        )
    # On the meta device nothing is drawn, so loading leaves the global generator alone.
    try:
        with torch.device("meta"):
            model = MODELS[name](**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds a bad configuration: {error}") from error
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != got:
        wrong = sorted(k for k in expected.keys() | got if expected.get(k) != got.get(k))
        raise ValueError(
            f"{str(path)!r} does not fit its own configuration: {', '.join(wrong[:3])}"
            f"{' and more' if len(wrong) > 3 else ''} missing, unknown or of another shape"
        )
    first = next(iter(tensors.values()))
    model = model.to(first.dtype).to_empty(device=first.device)
    model.load_state_dict(tensors)
    return model.eval()


def write_archive(
    path: StrPath, kind: str, tensors: dict[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Writes tensors and JSON to one file, whole or not at all."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path must be a file, got the folder {str(path)!r}")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": kind,
        "content": json.dumps(content, allow_nan=True),
    }
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(_serialised({k: v.cpu() for k, v in tensors.items()}, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, bytes]:
    """Header and tensors; safetensors shuffles the metadata, which makes equal files differ."""
    raw = to_bytes(tensors, metadata)
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, raw[start:]


def read_archive(
    path: StrPath, device: torch.device | str = "cpu"
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_archive` wrote: kind, tensors and JSON."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a file, got {str(path)!r}")
    try:
        with safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is not a safetensors file, or is damaged: {error}"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{str(path)!r} is a safetensors file, but not of lipvae.save or lipvae.fit"
        )
    version = metadata.get("version", "")
    if not version.isdigit() or int(version) > VERSION:
        raise ValueError(
            f"{str(path)!r} has format version {version!r}; this lipvae reads up to {VERSION}"
        )
    try:
        content = json.loads(metadata["content"])
        kind = metadata["kind"]
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} has a damaged header: {error!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} has a damaged header: {describe(content)}")
    return kind, tensors, content
