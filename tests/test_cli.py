"""The commands, run as a user runs them."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import lipvae
from lipvae import _backend, data
from lipvae.cli import app, doctor
from lipvae.cli import demo as demo_command
from lipvae.cli._writers import check_out
from lipvae.metrics import ood_metrics
from lipvae.scores import SCORES, select

RUNNER = CliRunner()
FC = ["--architecture", "fc", "--hidden", "16", "--latent-dim", "2"]
DEFAULT = [score.name for score in select(None, 128)]


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def run(*arguments: object, code: int = 0) -> Any:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if code == 0 and result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object) -> str:
    """The error of a command: one message on stderr, exit code 2, no traceback."""
    result = run(*arguments, code=2)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("error: ") == 1
    return result.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "model"
    run("fit", "digits", "--out", folder, "--epochs", 2, *FC, "--quiet")
    return folder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return data.load("digits", "test").images[:23].numpy()


def expected(model: Path, images: np.ndarray, **options: object) -> dict[str, torch.Tensor]:
    scorer = lipvae.Scorer(lipvae.load(model / "model.safetensors"), **options)  # type: ignore[arg-type]
    return scorer(torch.from_numpy(images).float() / 255)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_version_and_help() -> None:
    assert run("--version").stdout == f"lipvae {lipvae.__version__}\n"
    text = run("--help").stdout
    for command in ("demo", "fit", "score", "evaluate", "data", "doctor"):
        assert command in text
    assert "\x1b" not in text
    assert run(code=2).output.strip().startswith("Usage: lipvae")


@pytest.mark.parametrize(
    "command",
    [["demo"], ["fit"], ["score"], ["evaluate"], ["data", "list"], ["data", "fetch"], ["doctor"]],
)
def test_every_help_has_an_example(command: list[str]) -> None:
    text = run(*command, "--help").stdout
    assert f"• lipvae {' '.join(command)}" in text or "• LIPVAE" in text
    assert run(*command, "-h").stdout == text


# fit


def test_fit_writes_a_model_and_its_history(model: Path) -> None:
    names = sorted(file.name for file in model.iterdir())
    assert names == ["checkpoint.safetensors", "history.json", "model.safetensors"]
    loaded = lipvae.load(model / "model.safetensors")
    assert isinstance(loaded, lipvae.LipschitzVAE)
    assert loaded.latent_dim == 2
    content = json.loads((model / "history.json").read_text())
    assert content["data"] == "digits"
    assert len(content["history"]["train_elbo"]) == 2


def test_fit_reports_the_certificate(tmp_path: Path) -> None:
    text = run("fit", "digits:test", "-o", tmp_path / "m", "--epochs", 1, *FC).stdout
    assert "LipschitzVAE, 1 epochs" in text
    assert "M = 3" in text
    assert str(tmp_path / "m" / "model.safetensors") in text


def test_a_resumed_run_is_the_run_itself(tmp_path: Path) -> None:
    common = [*FC, "--quiet", "--seed", 5]
    run("fit", "digits:test", "-o", tmp_path / "whole", "--epochs", 3, *common)
    run("fit", "digits:test", "-o", tmp_path / "parts", "--epochs", 1, *common)
    run("fit", "digits:test", "-o", tmp_path / "parts", "--epochs", 3, *common, "--resume")
    whole, parts = (
        lipvae.load(tmp_path / name / "model.safetensors").state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_fit_does_not_replace_a_model_unasked(tmp_path: Path) -> None:
    arguments = ["fit", "digits:test", "-o", tmp_path / "m", "--epochs", 1, *FC, "-q"]
    run(*arguments)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert "add --resume or --overwrite" in refused(*arguments)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    run(*arguments, "--overwrite", "--seed", 1)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != before


def test_fit_does_not_throw_away_a_stopped_run(tmp_path: Path) -> None:
    arguments = ["fit", "digits:test", "-o", tmp_path / "m", "--epochs", 2, *FC, "-q"]
    run(*arguments)
    (tmp_path / "m" / "model.safetensors").unlink()  # as a run that was interrupted leaves it
    checkpoint = (tmp_path / "m" / "checkpoint.safetensors").read_bytes()
    assert "run that was stopped; add --resume or --overwrite" in refused(*arguments)
    assert (tmp_path / "m" / "checkpoint.safetensors").read_bytes() == checkpoint
    run(*arguments, "--resume")
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_an_interrupted_fit_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, checkpoint: Path, **options: object) -> None:
        checkpoint.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(lipvae, "fit", stop)
    found = RUNNER.invoke(app, ["fit", "digits:test", "-o", str(tmp_path / "m"), *map(str, FC)])
    assert found.exit_code == 130
    assert "--resume" in found.stderr


def test_every_option_of_fit_reaches_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def take(model: lipvae.VAE, images: torch.Tensor, **options: object) -> None:
        seen.update(options, model=model)
        raise ValueError("seen")

    monkeypatch.setattr(lipvae, "fit", take)
    given = {
        "epochs": 3, "batch_size": 17, "lr": 0.02, "warmup": 2, "schedule": "cosine",
        "keep": "best", "validation": 0.25, "seed": 9,
    }  # fmt: skip
    words = [
        word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    assert "seen" in refused("fit", "digits:test", "-o", tmp_path / "m", *FC, *words)
    assert {name: seen[name] for name in given} == given
    assert isinstance(seen["model"], lipvae.LipschitzVAE)


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_every_option_of_scoring_reaches_the_scorer(
    command: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def take(model: lipvae.VAE, scores: object, **options: object) -> None:
        seen.update(options, scores=scores)
        raise ValueError("seen")

    monkeypatch.setattr("lipvae.cli._common.Scorer", take)
    given = {"num_samples": 7, "seed": 5, "refine": 2, "batch_size": 11, "noise": "sobol"}
    words = [
        word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    words += ["--scores", "elbo,ess", "--decoder-dtype", "bfloat16"]
    places = ["digits:test"] if command == "score" else ["--inliers", "digits:test"]
    places += [] if command == "score" else ["--outliers", "digits:train"]
    assert "seen" in refused(command, model, *places, *words)
    given |= {"scores": ["elbo", "ess"], "decoder_dtype": torch.bfloat16}
    assert {name: seen[name] for name in given} == given


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("fit", "digits:test", "-o", tmp_path / name, "--epochs", 1, *FC, "-q")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_the_history_is_json_without_validation_images(tmp_path: Path) -> None:
    run("fit", "digits:test", "-o", tmp_path / "m", "--epochs", 1, "--validation", 0, *FC, "-q")
    text = (tmp_path / "m" / "history.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["history"]["validation_elbo"] == [None]


def test_a_missing_folder_is_told_before_the_work(tmp_path: Path, model: Path) -> None:
    missing = tmp_path / "none"
    score = ["score", model, "digits:test", "--inliers", tmp_path / "no-such-file.npy"]
    assert "there is no folder" in refused(*score, "-o", missing / "s.csv")
    for option, name in (("--plot", "p.png"), ("--json", "p.json")):
        arguments = ["--inliers", "digits:test", "--outliers", "digits:train", option]
        text = refused("evaluate", model, *arguments, missing / name)
        assert f"{option}: there is no folder" in text


def test_fit_takes_files_and_a_vanilla_model(tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", images)
    run(
        "fit", tmp_path / "x.npy", "-o", tmp_path / "m", "--epochs", 1, "--model", "vanilla",
        "--hidden", "16", "--likelihood", "gaussian", "--validation", 0, "-q",
    )  # fmt: skip
    loaded = lipvae.load(tmp_path / "m" / "model.safetensors")
    assert type(loaded) is lipvae.VAE
    assert loaded.architecture == "fc"  # 8x8 is too small for convolutions worth the name
    assert loaded.likelihood.name == "gaussian"


def test_fit_and_score_on_a_sphere(tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", images)
    run(
        "fit", tmp_path / "x.npy", "-o", tmp_path / "m", "--epochs", 1, "--hidden", "16",
        "--model", "hyperspherical", "--latent-dim", 3, "-q",
    )  # fmt: skip
    loaded = lipvae.load(tmp_path / "m" / "model.safetensors")
    assert isinstance(loaded, lipvae.HypersphericalVAE)
    assert loaded.latent_dim == 3
    found = rows(run("score", tmp_path / "m", tmp_path / "x.npy", "--num-samples", 8).stdout)
    truth = lipvae.Scorer(loaded, num_samples=8)(torch.from_numpy(images).float() / 255)
    for name, score in truth.items():
        assert [float(row[name]) for row in found] == pytest.approx(score.tolist(), rel=1e-6)


def test_fit_trains_and_resumes_an_ensemble(tmp_path: Path) -> None:
    common = ["digits:test", "--epochs", 1, *FC, "-q"]
    run("fit", *common, "-o", tmp_path / "e", "--seed", 3, "--members", 2)
    loaded = lipvae.load(tmp_path / "e" / "model.safetensors")
    assert isinstance(loaded, lipvae.Ensemble)
    run("fit", *common, "-o", tmp_path / "one", "--seed", 4)
    one = lipvae.load(tmp_path / "one" / "model.safetensors").state_dict()
    second = loaded.members[1].state_dict()
    assert all(torch.equal(one[name], second[name]) for name in one)
    content = json.loads((tmp_path / "e" / "history.json").read_text())
    assert len(content["members"]) == 2
    run("fit", *common, "-o", tmp_path / "e", "--seed", 3, "--members", 3, "--resume")
    more = lipvae.load(tmp_path / "e" / "model.safetensors")
    assert len(more) == 3
    third = more.members[1].state_dict()
    assert all(torch.equal(third[name], second[name]) for name in second)
    names = list(rows(run("score", tmp_path / "e", "digits:test", "--num-samples", 4).stdout)[0])
    assert names[-2:] == ["mean_hole_indicator", "mean_stds_of_lls"]
    text = refused("score", tmp_path / "e", "digits", "--calibrate", "digits:train")
    assert "--calibrate is for a single model" in text
    run("fit", *common, "-o", tmp_path / "e", "--overwrite")
    assert sorted(file.name for file in (tmp_path / "e").glob("checkpoint*")) == [
        "checkpoint.safetensors"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--members", "2", "--resume"], "there is no checkpoint-0.safetensors"),
        (["--model", "huge"], "--model must be one of lipschitz, hyperspherical, vanilla"),
        (["--hidden", "a,b"], "--hidden must be numbers"),
        (["--hidden", "16,0"], "--hidden must be from 1 to 65536, got '16,0'"),
        (["--hidden", str(10**30)], "--hidden must be from 1 to 65536"),
        (["--model", "vanilla", "--lipschitz", "3"], "--lipschitz is for --model lipschitz"),
        (["--model", "hyperspherical", "--latent-dim", "1"], "latent_dim must be at least 2"),
        (["--architecture", "rnn"], "architecture must be one of"),
        (["--likelihood", "poisson"], "likelihood must be one of"),
        (["--schedule", "step"], "--schedule must be one of constant, cosine"),
        (["--keep", "first"], "--keep must be one of last, best"),
        (["--resume"], "there is no checkpoint.safetensors"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--device", "tpu9"], "--device must be"),
        (["--lr", "-1"], "lr must be positive"),
    ],
)
def test_bad_fits(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refused("fit", "digits", "-o", tmp_path / "m", "--epochs", 1, *options)


def test_fit_without_images(tmp_path: Path) -> None:
    assert "nowhere" in refused("fit", "nowhere", "-o", tmp_path / "m")
    assert "train, test" in refused("fit", "digits:all", "-o", tmp_path / "m")
    found = run("fit", "digits", "-o", tmp_path / "m", "--latent-dim", 10**30, code=2)
    assert "--latent-dim" in found.stderr
    (tmp_path / "file").write_text("")
    assert "must be a folder" in refused("fit", "digits", "-o", tmp_path / "file")


def test_fit_resizes_and_skips_when_asked(tmp_path: Path, images: np.ndarray) -> None:
    folder = folder_of(images[:6], tmp_path / "images")
    Image.new("L", (20, 30)).save(folder / "6.png")
    fit = ["fit", folder, "--epochs", 1, *FC]
    message = refused(*fit, "-o", tmp_path / "m")
    assert "6.png must be 8x8 pixels" in message
    assert "(--resize" in message
    (folder / "7.png").write_text("no image")
    assert "7.png cannot be read" in refused(*fit, "-o", tmp_path / "m", "--resize")
    assert not (tmp_path / "m").exists()
    found = run(*fit, "-o", tmp_path / "a", "--skip-unreadable").stderr
    assert found.count("skipped: ") == 2
    result = run(*fit, "-o", tmp_path / "b", "--skip-unreadable", "--resize", "-q")
    assert result.stderr.count("skipped: ") == 1
    (folder / "7.png").unlink()
    run(*fit, "-o", tmp_path / "c", "--resize")
    b, c = (lipvae.load(tmp_path / x / "model.safetensors").state_dict() for x in "bc")
    assert all(torch.equal(b[name], c[name]) for name in b)


def test_a_resumed_run_that_has_its_epochs_says_so(tmp_path: Path) -> None:
    fit = ["fit", "digits:test", "-o", tmp_path / "m", *FC]
    assert run(*fit, "--epochs", 2).stderr == ""
    found = run(*fit, "--epochs", 1, "--resume").stderr
    assert "note: nothing was trained: checkpoint.safetensors has 2 epochs already" in found
    assert "--epochs asks for 1" in found
    assert run(*fit, "--epochs", 1, "--resume", "-q").stderr == ""
    assert run(*fit, "--epochs", 3, "--resume").stderr == ""


def test_every_member_has_a_seed(tmp_path: Path) -> None:
    fit = ["fit", "digits:test", "-o", tmp_path / "m", "--epochs", 1, *FC, "-q"]
    message = refused(*fit, "--seed", 2**64 - 2, "--members", 3)
    assert "--seed must leave a seed below 2**64 for each of 3 members" in message
    run(*fit, "--seed", 2**64 - 2, "--members", 2)


def test_fit_into_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipvae.cli.fit._load", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").touch()
    message = refused("fit", "digits", "-o", tmp_path / "file" / "sub" / "m")
    assert f"--out must be a folder, got the file {str(tmp_path / 'file')!r}" in message
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    message = refused("fit", "digits", "-o", tmp_path / "new" / "m")
    assert f"--out: the folder {str(tmp_path)!r} cannot be written" in message


# score


def test_score_writes_every_double_to_the_bit(
    tmp_path: Path, model: Path, images: np.ndarray
) -> None:
    np.save(tmp_path / "x.npy", images)
    out = tmp_path / "s.csv"
    result = run("score", model, tmp_path / "x.npy", "--out", out)
    assert result.stdout == ""
    assert f"23 images scored: {out}" in result.stderr
    found = rows(out.read_text())
    assert list(found[0]) == ["input", "id", *DEFAULT]
    assert [row["id"] for row in found] == [str(i) for i in range(23)]
    assert {row["input"] for row in found} == {str(tmp_path / "x.npy")}
    for name, truth in expected(model, images).items():
        assert [float(row[name]) for row in found] == truth.tolist()
    assert not list(tmp_path.glob("*.part"))


def test_scores_with_p_values(tmp_path: Path, model: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "good.npy", images[:9])
    np.save(tmp_path / "x.npy", images)
    out = tmp_path / "s.csv"
    options = ["--scores", "elbo,kl", "--inliers", tmp_path / "good.npy"]
    run("score", model, tmp_path / "x.npy", "--out", out, *options)
    found = rows(out.read_text())
    assert list(found[0]) == ["input", "id", "elbo", "kl", "elbo_p", "kl_p"]
    for name in ("elbo", "kl"):
        scores = [float(row[name]) for row in found]
        for row, score in zip(found, scores, strict=True):
            as_high = sum(s >= score for s in scores[:9])
            assert float(row[f"{name}_p"]) == (1 + as_high) / 10


def test_csv_and_parquet_agree(tmp_path: Path, model: Path, images: np.ndarray) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    np.savez(tmp_path / "x.npz", images)
    for ending in ("csv", "parquet"):
        run("score", model, tmp_path / "x.npz", "-o", tmp_path / f"s.{ending}", "--batch-size", 5)
    table = parquet.read_table(tmp_path / "s.parquet")
    found = rows((tmp_path / "s.csv").read_text())
    assert table.column_names == list(found[0])
    assert len(found) == table.num_rows == 23
    for name in table.column_names:
        column = table.column(name).to_pylist()
        assert column == [float(r[name]) if name in SCORES else r[name] for r in found]


def test_batch_size_and_the_company_do_not_matter(
    tmp_path: Path, model: Path, images: np.ndarray
) -> None:
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "b.npy", images[::-1])
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    whole = rows(run("score", model, a, b, "-q").stdout)
    small = rows(run("score", model, b, a, "-q", "--batch-size", 4).stdout)
    key = lambda row: (row["input"], int(row["id"]))  # noqa: E731
    assert sorted(whole, key=key) == sorted(small, key=key)
    assert [r["elbo"] for r in whole[:23]] == [r["elbo"] for r in whole[:22:-1]]


def test_score_folders_and_data_sets(tmp_path: Path, model: Path, images: np.ndarray) -> None:
    for i in range(3):
        Image.fromarray(images[i, 0]).save(tmp_path / f"{i}.png")
    found = rows(run("score", model, tmp_path, "--scores", "elbo,ess", "--num-samples", 8).stdout)
    assert list(found[0]) == ["input", "id", "elbo", "ess"]
    assert [row["id"] for row in found] == ["0.png", "1.png", "2.png"]
    truth = expected(model, images[:3], scores=["elbo"], num_samples=8)["elbo"]
    assert [float(row["elbo"]) for row in found] == truth.tolist()
    named = rows(run("score", model, "digits:test", "--scores", "elbo", "--num-samples", 8).stdout)
    assert [row["elbo"] for row in named[:3]] == [row["elbo"] for row in found]


def test_resize(tmp_path: Path, model: Path) -> None:
    Image.new("RGB", (20, 30), (9, 9, 9)).save(tmp_path / "a.png")
    assert "must be 8x8 pixels" in refused("score", model, tmp_path / "a.png")
    assert len(rows(run("score", model, tmp_path / "a.png", "--resize").stdout)) == 1


def test_files_that_cannot_be_read_are_skipped_when_asked(
    tmp_path: Path, model: Path, images: np.ndarray
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(images[i, 0]).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    Image.new("L", (9, 9)).save(folder / "5.png")
    common = ["--scores", "elbo", "--num-samples", 4, "--batch-size", 1]
    score = ["score", model, folder, *common]
    assert "2.png cannot be read as an image" in refused(*score)
    result = run(*score, "--skip-unreadable", "--inliers", folder)
    assert [row["id"] for row in rows(result.stdout)] == ["0.png", "1.png", "3.png", "4.png"]
    # Of the inliers and of the images.
    assert result.stderr.count("2.png cannot be read as an image") == 2
    assert result.stderr.count("5.png must be 8x8 pixels") == 2
    truth = expected(model, images[[0, 1, 3, 4]], scores=["elbo"], num_samples=4)["elbo"]
    assert [float(row["elbo"]) for row in rows(result.stdout)] == truth.tolist()
    content = json.loads(
        run("evaluate", model, "-i", folder, "-u", "near-black", "--limit", 4, *common,
            "--skip-unreadable", "--json", "-").stdout
    )  # fmt: skip
    assert content["inliers"]["count"] == 3
    for i in (0, 1, 3, 4):
        (folder / f"{i}.png").unlink()
    message = refused(*score, "--skip-unreadable")
    assert "holds no image that can be read" in message


def test_a_file_that_goes_bad_keeps_the_rows_before(tmp_path: Path, model: Path) -> None:
    array = np.zeros((20, 8, 8), np.float32)
    array[17] = np.nan
    np.save(tmp_path / "x.npy", array)
    out = tmp_path / "s.csv"
    message = refused("score", model, tmp_path / "x.npy", "-o", out, "--batch-size", 5)
    assert "NaN or infinity in image 17" in message
    assert not out.exists()
    assert len(rows((tmp_path / "s.csv.part").read_text())) == 15


def test_only_a_batch_is_in_memory(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1000, 8, 8))
    array[:] = 7
    array.flush()
    sizes = []
    original = lipvae.Scorer.__call__

    def watched(self: lipvae.Scorer, x: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(x))
        return original(self, x)

    monkeypatch.setattr(lipvae.Scorer, "__call__", watched)
    arguments = ["--batch-size", 64, "--num-samples", 2, "--scores", "elbo"]
    found = rows(run("score", model, tmp_path / "x.npy", *arguments).stdout)
    assert len(found) == sum(sizes) == 1000
    assert max(sizes) == 64


def test_calibrated_scores(tmp_path: Path, model: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", images[:4])
    arguments = ["score", model, tmp_path / "x.npy", "--scores", "typicality,elbo"]
    assert "--scores typicality needs --calibrate" in refused(*arguments)
    found = rows(run(*arguments, "--calibrate", "digits").stdout)
    scorer = lipvae.Scorer(lipvae.load(model / "model.safetensors"), ["typicality"])
    scorer.calibrate(data.load("digits", "train").float())
    truth = scorer(torch.from_numpy(images[:4]).float() / 255)["typicality"]
    assert [float(row["typicality"]) for row in found] == truth.tolist()


def test_bad_scores(tmp_path: Path, model: Path) -> None:
    assert "must be a file" in refused("score", tmp_path / "none", "digits")
    (tmp_path / "junk").write_text("junk")
    assert "safetensors" in refused("score", tmp_path / "junk", "digits")
    assert "nowhere" in refused("score", model, "nowhere")
    assert "got 'nonsense'" in refused("score", model, "digits", "--scores", "nonsense")
    assert "at least 2" in refused(
        "score", model, "digits", "--scores", "hole_indicator", "--num-samples", 1
    )
    assert ".csv or .parquet" in refused("score", model, "digits", "-o", tmp_path / "s.txt")
    assert "no folder" in refused("score", model, "digits", "-o", tmp_path / "no" / "s.csv")
    np.save(tmp_path / "wide.npy", np.zeros((3, 9, 9), np.uint8))
    assert "(1, 8, 8)" in refused("score", model, tmp_path / "wide.npy")


def test_no_gpu_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA or ROCm GPU" in refused("score", model, "digits", "--device", "cuda")


def test_parquet_without_pyarrow(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused("score", model, "digits", "-o", tmp_path / "s.parquet")
    assert "pip install 'lipvae[parquet]'" in message


def test_a_closed_stdout_needs_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ValueError, match="--out must be given"):
        check_out(None)
    check_out(tmp_path / "s.csv")


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("LIPVAE_DEBUG", "1")
    result = RUNNER.invoke(app, ["score", str(model), "nowhere"])
    assert isinstance(result.exception, FileNotFoundError)


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, model: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3000, 8, 8), np.uint8))
    command = (
        f"{sys.executable} -c 'from lipvae.cli import main; main()' score {model} "
        f"{tmp_path / 'x.npy'} --num-samples 2 | head -n 2"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("input,id,")
    assert done.stderr == ""


def folder_of(images: np.ndarray, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{i}.png")
    return folder


def test_files_that_are_named_are_skipped_like_those_of_a_folder(
    tmp_path: Path, model: Path, images: np.ndarray
) -> None:
    good = folder_of(images[:2], tmp_path / "good")
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    score = ["score", model, bad, good, bad, "--scores", "elbo", "--num-samples", 4]
    assert "bad.png cannot be read as an image" in refused(*score)
    result = run(*score, "--skip-unreadable", "-q")
    assert [row["id"] for row in rows(result.stdout)] == ["0.png", "1.png"]
    assert result.stderr.count("skipped: ") == result.stderr.count("bad.png cannot be read") == 2
    found = run("score", model, bad, "--scores", "elbo", "--skip-unreadable", code=2)
    assert "holds no image that can be read" in found.stderr


def test_calibration_heeds_the_options_for_image_files(
    tmp_path: Path, model: Path, images: np.ndarray
) -> None:
    folder = folder_of(images[:5], tmp_path / "train")
    (folder / "9.png").write_text("no image")
    score = ["score", model, "digits", "--scores", "typicality", "--calibrate", folder]
    assert "9.png cannot be read" in refused(*score)
    result = run(*score, "--skip-unreadable")
    assert result.stderr.count("skipped: ") == 1
    np.save(tmp_path / "x.npy", images[:5])
    assert result.stdout == run(*score[:-1], tmp_path / "x.npy").stdout
    (folder / "9.png").unlink()
    Image.new("L", (20, 30)).save(folder / "5.png")
    assert "must be 8x8 pixels" in refused(*score)
    assert len(rows(run(*score, "--resize").stdout)) == 445
    run("evaluate", model, "-i", "digits", "-u", "near-black", "--limit", 5, *score[3:], "--resize")


def test_calibration_that_no_score_wants_is_refused(model: Path) -> None:
    for scores in ([], ["--scores", "elbo,kl"]):
        message = refused("score", model, "digits", "--calibrate", "digits:train", *scores)
        assert "--calibrate serves none of the scores" in message
        assert "add some of typicality, f_lip, f_agg to --scores" in message
    few = ["--num-samples", 2, "--calibrate", "digits:train"]
    run("score", model, "digits", "--scores", "all", *few)


def test_too_few_inliers_for_p_values_of_one_in_a_hundred_are_told(
    tmp_path: Path, model: Path, images: np.ndarray
) -> None:
    np.save(tmp_path / "x.npy", images[:3])
    score = ["score", model, tmp_path / "x.npy", "--scores", "elbo", "--num-samples", 2]
    test = data.load("digits", "test").images.numpy()
    for count, told in ((98, True), (99, False)):
        np.save(tmp_path / "good.npy", test[:count])
        result = run(*score, "--inliers", tmp_path / "good.npy")
        assert result.stderr.startswith("note: --inliers has 98 images") is told
        assert ("that takes 99 images" in result.stderr) is told
        assert run(*score, "--inliers", tmp_path / "good.npy", "-q").stderr == ""


def test_names_that_are_not_utf_8(tmp_path: Path, model: Path, images: np.ndarray) -> None:
    folder = folder_of(images[:1], tmp_path / os.fsdecode(b"f\xfe"))
    (folder / "0.png").rename(folder / os.fsdecode(b"bad\xff.png"))
    score = ["score", model, folder, "--scores", "elbo", "--num-samples", 2]
    endings = ["csv"]
    if importlib.util.find_spec("pyarrow"):
        endings.append("parquet")
    for ending in endings:
        run(*score, "-o", tmp_path / f"s.{ending}")
    (found,) = rows((tmp_path / "s.csv").read_text(encoding="utf-8"))
    assert found["id"] == r"bad\xff.png"
    assert found["input"] == rf"{tmp_path}/f\xfe"
    out = tmp_path / os.fsdecode(b"out\xfd.json")
    sets = ["-i", folder, "-u", "near-black", "--limit", 5, "--num-samples", 2]
    result = run("evaluate", model, *sets, "--json", out)
    assert rf"numbers: {tmp_path}/out\xfd.json" in result.stdout
    assert json.loads(out.read_text())["inliers"]["name"] == rf"{tmp_path}/f\xfe"
    text = run("fit", folder, "-o", tmp_path / os.fsdecode(b"m\xfc"), "--epochs", 1, *FC).stdout
    assert r"m\xfc/model.safetensors" in text
    assert "no validation images" in text


def test_names_that_the_terminal_lacks(tmp_path: Path, model: Path, images: np.ndarray) -> None:
    folder = folder_of(images[:1], tmp_path / "图")
    code = "from lipvae.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "score", model, folder, "--scores", "elbo"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert r"\u56fe,0.png," in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["a[/b]c", "x[red]y", "w[", "back\\[b]", ":smile:", "_a$b$c_^"])
def test_names_are_no_markup(
    tmp_path: Path, model: Path, images: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # short, so that no cell is folded
    folder_of(images[:2], tmp_path / name)
    options = ["--num-samples", 2, "--scores", "elbo"]
    out = f"{name}.csv"
    assert f"2 images scored: {out}\n" in run("score", model, name, *options, "-o", out).stderr
    sets = ["-i", name, "-u", "near-black", "--limit", 5]
    numbers, plot = f"{name}.json", f"{name}.png"
    result = run("evaluate", model, *sets, *options, "--json", numbers, "--plot", plot)
    assert f"Inliers: {name}. Per cent" in result.stdout
    assert f"numbers: {numbers}\n" in result.stdout
    assert f"histograms: {plot}\n" in result.stderr
    assert Path(plot).is_file()
    sets = ["-i", "near-black", "-u", name, "--limit", 5]
    assert f"│ {name} " in run("evaluate", model, *sets, *options).stdout
    text = run("fit", name, "-o", f"{name}.model", "--epochs", 1, *FC).stdout
    assert f"model: {name}.model/model.safetensors\n" in text
    (tmp_path / name / "0.png").write_text("no image")
    assert f"{name}/0.png cannot be read" in refused("score", model, name)


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_results_that_cannot_be_written_are_told_before_the_work(
    command: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipvae.cli._common.load", lambda *_: pytest.fail("too late"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "closed").mkdir()
    allowed = os.access

    def access(path: Path, mode: int) -> bool:
        return path != tmp_path / "closed" and allowed(path, mode)

    monkeypatch.setattr(os, "access", access)
    if command == "score":
        start, options = ["score", model, "digits"], {"--out": "csv"}
    else:
        start = ["evaluate", model, "-i", "digits", "-u", "near-black"]
        options = {"--json": "csv", "--plot": "png"}
    for option, ending in options.items():
        folder = tmp_path / f"folder.{ending}"
        assert f"{option} must be a file, got the folder" in refused(*start, option, folder)
        closed = tmp_path / "closed" / f"x.{ending}"
        assert f"{option}: {str(closed)!r} cannot be written" in refused(*start, option, closed)


def test_a_picture_of_another_kind_is_refused_before_the_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ["-i", "digits", "-u", "near-black", "--limit", 5, "--num-samples", 2]
    pdf = tmp_path / "p.pdf"
    run("evaluate", model, *sets, "--plot", pdf)
    assert pdf.read_bytes().startswith(b"%PDF")
    monkeypatch.setattr("lipvae.cli._common.load", lambda *_: pytest.fail("too late"))
    for name in ("pic.txt", "pic"):
        message = refused("evaluate", model, *sets, "--plot", tmp_path / name)
        assert "--plot must end in .png, .pdf, .svg, got" in message
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'lipvae[plot]'" in refused("evaluate", model, *sets, "--plot", pdf)


def test_numbers_may_go_to_a_device(model: Path) -> None:
    sets = ["-i", "digits", "-u", "near-black", "--limit", 5, "--num-samples", 2]
    assert "numbers: /dev/null" in run("evaluate", model, *sets, "--json", os.devnull).stdout


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "cpu:1"])
def test_devices_that_are_not_served(name: str, model: Path) -> None:
    message = refused("score", model, "digits", "--device", name)
    assert "--device must be auto, cpu, cuda or cuda:N (an NVIDIA or AMD GPU), got" in message
    assert f"{name!r}" in message


def test_a_gpu_beyond_the_last(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = refused("score", model, "digits", "--device", "cuda:2")
    assert "--device cuda:2: the last GPU here is cuda:1" in message


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_torch_does_not_take(seed: int, tmp_path: Path, model: Path) -> None:
    for command in (["score", model, "digits"], ["fit", "digits", "-o", tmp_path / "m"]):
        assert "--seed" in run(*command, "--seed", seed, code=2).stderr
    assert not (tmp_path / "m").exists()


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    message = refused("score", tmp_path, "digits")
    assert f"{str(tmp_path)!r} holds no model.safetensors" in message


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "not enough memory: take"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "memory for 7.28 TiB more: take"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                         "64000000000 bytes. Error code 12"),
            "not enough memory for 59.6 GiB more: take",
        ),
        (RuntimeError("Storage size calculation overflowed"), "not enough memory: take"),
    ],
)  # fmt: skip
def test_a_full_memory_is_told(
    error: Exception, told: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("lipvae.cli._common.load", fail)
    assert told in refused("score", model, "digits")


def test_faults_of_the_program_keep_their_traceback(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("lipvae.cli._common.load", fail)
    result = RUNNER.invoke(app, ["score", str(model), "digits"])
    assert isinstance(result.exception, RuntimeError)


# evaluate


def test_evaluate(tmp_path: Path, model: Path) -> None:
    arguments = ["evaluate", model, "--inliers", "digits", "-u", "near-black", "-u", "near-white"]
    arguments += ["--num-samples", 16, "--limit", 40]
    result = run(*arguments, "--json", tmp_path / "r.json", "--plot", tmp_path / "h.png")
    assert "LipschitzVAE, K = 16" in result.stdout
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["num_samples"] == 16
    assert content["inliers"] == {"name": "digits:test", "count": 40}
    assert [found["name"] for found in content["outliers"]] == [
        "near-black:test",
        "near-white:test",
    ]
    inliers = data.load("digits", "test").images[:40].numpy()
    outliers = data.load("near-black", "test", shape=(1, 8, 8)).images[:40].numpy()
    a, b = (expected(model, x, num_samples=16) for x in (inliers, outliers))
    for name, found in content["outliers"][0]["scores"].items():
        truth = ood_metrics(a[name], b[name])
        assert found == {
            "auroc": truth.auroc,
            "auprc": truth.auprc,
            "auprc_inlier": truth.auprc_inlier,
            "fpr80": truth.fpr80,
        }
        line = next(x for x in result.stdout.splitlines() if f" {SCORES[name].title} " in x)
        assert f" {100 * truth.auroc:.2f} " in line
    with Image.open(tmp_path / "h.png") as image:
        assert image.format == "PNG"
    alone = run(*arguments, "--json", "-")
    assert json.loads(alone.stdout) == content


def test_refine(tmp_path: Path, model: Path) -> None:
    x = data.load("digits", "test").images[:5].numpy()
    np.save(tmp_path / "x.npy", x)
    arguments = [tmp_path / "x.npy", "--num-samples", 16, "--scores", "elbo"]
    plain = run("score", model, *arguments).stdout.splitlines()
    steps = run("score", model, *arguments, "--refine", 2).stdout.splitlines()
    likelier = [
        float(b.split(",")[-1]) < float(a.split(",")[-1])
        for a, b in zip(plain[1:], steps[1:], strict=True)
    ]
    assert sum(likelier) >= 4
    result = run(
        "evaluate", model, "-i", "digits", "-u", "near-black", "--limit", 10, "--refine", 1
    )
    assert "refine = 1" in result.stdout


@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
def test_noise(tmp_path: Path, model: Path) -> None:
    x = data.load("digits", "test").images[:5].numpy()
    np.save(tmp_path / "x.npy", x)
    arguments = [model, tmp_path / "x.npy", "--num-samples", 16, "--scores", "elbo"]
    found = rows(run("score", *arguments, "--noise", "sobol").stdout)
    loaded = lipvae.load(model / "model.safetensors")
    images = torch.from_numpy(x).float() / 255
    truth = lipvae.Scorer(loaded, ["elbo"], num_samples=16, noise="sobol")(images)["elbo"]
    assert [float(row["elbo"]) for row in found] == truth.tolist()
    text = run(
        "evaluate", model, "-i", "digits", "-u", "near-black", "--limit", 9, "--noise", "sobol"
    ).stdout
    assert "sobol noise" in text
    assert "--noise must be independent or sobol" in refused("score", *arguments, "--noise", "x")


def test_decoder_dtype(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "numbers.json"
    arguments = ["evaluate", model, "-i", "digits", "-u", "near-black", "--limit", 10]
    result = run(*arguments, "--decoder-dtype", "bfloat16", "--json", path)
    assert "decoder in bfloat16" in result.stdout
    assert json.loads(path.read_text())["decoder_dtype"] == "torch.bfloat16"
    message = refused(*arguments, "--decoder-dtype", "int8")
    assert "must be bfloat16 or float16, got 'int8'" in message


def test_splits_and_sizes_hold_for_every_set(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "r.json"
    sets = ["-i", "digits", "-u", "near-black", "-u", "digits:test"]
    run("evaluate", model, *sets, "--limit", 5, "--split", "train", "--json", path)
    content = json.loads(path.read_text())
    assert content["inliers"]["name"] == "digits:train"
    assert [found["name"] for found in content["outliers"]] == ["near-black:train", "digits:test"]
    for name, grey in (("a", 9), ("b", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            image = Image.new("L", (20, 30), grey + i)
            image.save(tmp_path / name / f"{i}.png")
    sets = ["-i", tmp_path / "a", "-u", tmp_path / "b"]
    assert "must be 8x8 pixels" in refused("evaluate", model, *sets)
    assert "LipschitzVAE" in run("evaluate", model, *sets, "--resize").stdout
    x = tmp_path / "x.npy"
    np.save(x, data.load("digits", "test").images[:4].numpy())
    score = ["score", model, x, "--num-samples", 4, "--scores", "elbo"]
    train = run(*score, "--inliers", "digits", "--split", "train").stdout
    assert train == run(*score, "--inliers", "digits:train").stdout
    assert train != run(*score, "--inliers", "digits:test").stdout
    assert "must be 8x8 pixels" in refused(*score, "--inliers", tmp_path / "a")
    assert len(rows(run(*score, "--inliers", tmp_path / "a", "--resize").stdout)) == 4


def test_bad_evaluations(model: Path) -> None:
    message = refused("evaluate", model, "-i", "digits", "-u", "digits:test")
    assert "must differ, got digits:test twice" in message
    result = run("evaluate", model, "-i", "digits", code=2)
    assert "Missing option" in result.stderr


# data


def test_data_fetch_prints_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"a": tmp_path / "a", "b": tmp_path / "b"}
    monkeypatch.setattr(data, "fetch", lambda *arguments, **options: paths)
    assert run("data", "fetch", "mnist").stdout.split() == [str(path) for path in paths.values()]


def test_data_list() -> None:
    text = run("data", "list").stdout
    for name in data.NAMES:
        assert f" {name} " in text


def test_data_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mnist" in refused("data", "fetch", "imagenet")
    monkeypatch.setenv("LIPVAE_CACHE", str(tmp_path))
    message = refused("data", "fetch", "mnist", "--sources", "cache", "-q")
    assert "not available" in message
    assert "cache" in message


# doctor


def test_doctor() -> None:
    text = run("doctor").stdout
    assert torch.__version__ in text
    assert "all well" in text
    assert {line.split()[1] for line in text.splitlines() if " cpu " in line} == set(_backend.OPS)
    folder = Path(lipvae.__file__).parent / "ops"
    public = {"conv_transpose", "packed_lipschitz", "panels", "projected_lipschitz", "vmf_density"}
    named = {path.stem for path in folder.glob("[a-z]*.py")}
    assert named - public == set(_backend.OPS)


def test_doctor_says_what_a_request_means(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable LIPVAE_BACKEND is read when the package is imported.
    monkeypatch.setattr(_backend, "_process_wide", "reference")
    assert doctor.explain("l1_ball", "cpu", torch.float32) == (
        "reference",
        "requested by LIPVAE_BACKEND",
    )
    monkeypatch.setattr(_backend, "_process_wide", "triton")
    backend, why = doctor.explain("l1_ball", "cpu", torch.float64)
    assert backend == "none"
    assert "triton" in why
    assert "amiss" in run("doctor", code=1).stdout


def test_doctor_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _backend.Availability(None, "it was not built")
    monkeypatch.setattr(_backend, "cpp_availability", lambda: missing)
    backend, why = doctor.explain("importance", "cpu", torch.float32)
    assert backend == "reference"
    assert "it was not built" in why
    assert "the C++ extension is missing" in run("doctor", code=1).stdout


# demo


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = demo_command.digits_recipe

    def short() -> demo_command.Recipe:
        recipe = whole()
        outliers = {name: images[:20] for name, images in recipe.outliers.items()}
        return replace(recipe, epochs=2, outliers=outliers)

    monkeypatch.setitem(demo_command.RECIPES, "digits", short)


def test_demo(tmp_path: Path, short_demo: None) -> None:
    threads = torch.get_num_threads()
    text = run("demo", "--out", tmp_path / "o", "--num-samples", 4).stdout
    assert torch.get_num_threads() == threads
    for name in ("digits 8 and 9", "photograph patches", "near-black noise", "near-white noise"):
        assert name in text
    assert text.count("Hole indicator") == 4
    assert "guaranteed by M = 5" in text
    assert "certified for these weights" in text
    assert "observed: digits 0-7 (test)" in text
    picture = tmp_path / "o" / "demo-digits.png"
    assert f"histograms: {picture}" in text
    with Image.open(picture) as image:
        assert image.width > 1000
    assert isinstance(lipvae.load(tmp_path / "o" / "demo-digits.safetensors"), lipvae.LipschitzVAE)


def test_demo_images_share_nothing() -> None:
    recipe = demo_command.digits_recipe()
    train = {image.tobytes() for image in recipe.train.images.numpy()}
    assert set(recipe.train.labels.tolist()) == set(range(8))  # type: ignore[union-attr]
    for images in (recipe.inliers[1], *recipe.outliers.values()):
        assert not train & {image.tobytes() for image in (images * 255).round().byte().numpy()}


def test_unknown_demo() -> None:
    assert "digits, fashion-mnist" in refused("demo", "--data", "imagenet")


@pytest.mark.slow
def test_the_whole_demo_tells_photographs_from_digits(tmp_path: Path) -> None:
    text = run("demo", "--out", tmp_path, "--quiet").stdout
    block = text[text.index("photograph patches") : text.index("near-black")]
    auroc = float(block.splitlines()[0].split("│")[3])
    assert auroc > 95


def test_num_draws_counts_the_models_of_an_ensemble(tmp_path: Path) -> None:
    models = [lipvae.VAE((1, 8, 8), 2, "fc", (8,)).eval() for _ in range(9)]
    lipvae.save(lipvae.Ensemble(models), tmp_path / "nine")
    lipvae.save(models[0], tmp_path / "one")
    arguments = ["-i", "digits:test", "-u", "digits:train", "--limit", 9, "--num-samples", 4]
    for options, draws in (([], 9), (["--num-draws", 3], 3)):
        found = run("evaluate", tmp_path / "nine", *arguments, *options, "--json", "-").stdout
        assert json.loads(found)["num_draws"] == draws
    assert "S = 3" in run("evaluate", tmp_path / "nine", *arguments, "--num-draws", 3).stdout
    found = run("evaluate", tmp_path / "one", *arguments, "--json", "-").stdout
    assert json.loads(found)["num_draws"] is None
    text = refused("score", tmp_path / "one", "digits", "--num-draws", 3)
    assert "--num-draws is for an ensemble or a Bayesian model, got a single model" in text
    text = refused("score", tmp_path / "nine", "digits", "--num-draws", 10)
    assert "num_draws must be at most the 9 models of the ensemble, got 10" in text
