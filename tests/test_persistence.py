"""Saving and loading: the same model back, clear refusals, nothing executed."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lipvae
from lipvae import VAE, LipschitzVAE
from lipvae.likelihoods import LIKELIHOODS
from lipvae.persistence import VERSION, read_archive, write_archive


def small(cls=LipschitzVAE, **arguments):
    defaults = {"input_shape": (1, 8, 8), "latent_dim": 3, "architecture": "fc", "hidden": (8,)}
    return cls(**(defaults | arguments))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def header(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewrite(path, **changes):
    """The file with other metadata."""
    metadata = header(path) | changes
    save_file(load_file(path), path, {k: v for k, v in metadata.items() if v is not None})


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("architecture", ["fc", "conv"])
@pytest.mark.parametrize("cls", [VAE, LipschitzVAE])
def test_round_trip(cls, architecture, likelihood, path):
    model = cls((2, 9, 8), 3, architecture, likelihood=likelihood).eval()
    lipvae.save(model, path)
    loaded = lipvae.load(path)
    assert type(loaded) is cls
    assert loaded.config == model.config
    assert not loaded.training
    x = torch.rand(3, 2, 9, 8)
    assert torch.equal(loaded.encode(x).loc, model.encode(x).loc)
    z = torch.randn(4, 3)
    assert torch.equal(loaded.decode(z), model.decode(z))
    for name, parameter in loaded.named_parameters():
        assert parameter.requires_grad, name
        assert not parameter.is_meta, name


def test_arguments_round_trip(path):
    model = small(lipschitz=7.5, group_size=4, constrain_log_variance=False)
    lipvae.save(model, path)
    loaded = lipvae.load(path)
    assert loaded.lipschitz == 7.5
    assert loaded.config == model.config
    assert loaded.loc.lipschitz == model.loc.lipschitz


def test_a_loaded_model_trains(path):
    lipvae.save(small(), path)
    loaded = lipvae.load(path)
    history = lipvae.fit(loaded, torch.rand(64, 1, 8, 8), epochs=2, progress=False)
    assert len(history) == 2
    assert loaded.loc.threshold.dtype == torch.float64


def test_double_and_half_keep_their_dtype(path):
    lipvae.save(small().double(), path)
    assert next(lipvae.load(path).parameters()).dtype == torch.float64
    lipvae.save(small().bfloat16(), path)
    assert next(lipvae.load(path).parameters()).dtype == torch.bfloat16


def test_loading_draws_nothing(path):
    lipvae.save(small(), path)
    state = torch.get_rng_state()
    lipvae.load(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_path_may_be_text_and_the_folder_stays_clean(path):
    lipvae.save(small(), str(path))
    lipvae.save(small(), path)  # over itself
    lipvae.load(str(path), device=torch.device("cpu"))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_file_has_the_usual_permissions(path):
    plain = path.with_name("plain")
    plain.write_bytes(b"")
    lipvae.save(small(), path)
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    lipvae.save(small(), path)
    before = path.read_bytes()

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr("lipvae.persistence.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        lipvae.save(small(), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_file_is_safetensors_and_json_by_hand(path):
    # Read by the format's definition: 8 bytes of length, then a JSON header.
    model = small()
    lipvae.save(model, path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert metadata["format"] == "lipvae"
    assert metadata["version"] == str(VERSION)
    assert metadata["kind"] == "model"
    content = json.loads(metadata["content"])
    assert content == {"class": "LipschitzVAE", "config": model.config}
    assert set(load_file(path)) == set(model.state_dict())


def test_shared_and_strided_weights_are_saved(path):
    model = small(VAE)
    with torch.no_grad():
        model.loc.weight = torch.nn.Parameter(torch.randn(8, 3).t())
    lipvae.save(model, path)
    assert torch.equal(lipvae.load(path).loc.weight, model.loc.weight)


def test_refuses_what_is_not_a_model(path):
    class Other(VAE):
        pass

    for thing in (torch.nn.Linear(1, 1), small(Other), {"weights": 1}):
        with pytest.raises(TypeError, match=r"model must be one of VAE, LipschitzVAE.* got"):
            lipvae.save(thing, path)
    assert not path.exists()


def test_refuses_folders_and_missing_files(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        lipvae.load(path)
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        lipvae.load(tmp_path)
    with pytest.raises(IsADirectoryError, match="path must be a file, got the folder"):
        lipvae.save(small(), tmp_path)
    with pytest.raises(FileNotFoundError):
        lipvae.save(small(), tmp_path / "missing" / "model.safetensors")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise AssertionError('a pickle was executed')",))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a model", pickle.dumps(Bomb())])
def test_refuses_damaged_files_and_executes_nothing(content, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        lipvae.load(path)


def test_refuses_truncated_files(path):
    lipvae.save(small(), path)
    raw = path.read_bytes()
    for length in (4, 200, len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match="damaged"):
            lipvae.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not of lipvae.save or lipvae.fit"),
        ({"format": None}, "not of lipvae.save or lipvae.fit"),
        (
            {"version": str(VERSION + 1)},
            rf"format version '{VERSION + 1}'; this lipvae reads up to",
        ),
        ({"version": "new"}, "format version 'new'"),
        ({"kind": "detector"}, "must hold a model, got .* which holds a detector"),
        ({"kind": None}, "damaged header"),
        ({"content": "{"}, "damaged header"),
        ({"content": "[]"}, "damaged header"),
        ({"content": "{}"}, "must hold one of VAE, LipschitzVAE, .*got class None"),
        (
            {"content": json.dumps({"class": "os.system", "config": {}})},
            "must hold one of VAE, LipschitzVAE, .*got class 'os.system'",
        ),
        ({"content": json.dumps({"class": "VAE", "config": {"x": 1}})}, "bad configuration"),
        (
            {"content": json.dumps({"class": "VAE", "config": {"latent_dim": -1}})},
            "bad configuration: latent_dim must be at least 1",
        ),
        (
            {"content": json.dumps({"class": "VAE", "config": {"latent_dim": 4}})},
            "does not fit its own configuration",
        ),
    ],
)
def test_refuses_foreign_headers(changes, message, path):
    lipvae.save(small(), path)
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message):
        lipvae.load(path)


def test_archives_carry_any_json(path):
    tensors = {"a": torch.arange(3), "b": torch.rand(2, 2, dtype=torch.float64)}
    write_archive(path, "thing", tensors, {"nested": {"list": [1, None, "é"]}})
    kind, got, content = read_archive(path)
    assert kind == "thing"
    assert content == {"nested": {"list": [1, None, "é"]}}
    assert all(torch.equal(got[k], v) for k, v in tensors.items())


@pytest.mark.gpu
def test_moves_between_cpu_and_gpu(path):
    model = small().eval()
    lipvae.save(model.to("cuda"), path)
    assert next(lipvae.load(path).parameters()).device.type == "cpu"
    back = lipvae.load(path, device="cuda")
    assert next(back.parameters()).device.type == "cuda"
    x = torch.rand(2, 1, 8, 8, device="cuda")
    torch.testing.assert_close(back.encode(x).loc, model.encode(x).loc)
