"""Evaluations, their tables and their pictures."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lipvae.metrics import ood_metrics
from lipvae.models import LipschitzVAE
from lipvae.report import draw_histograms, evaluate, latent_table, metrics_table
from lipvae.report.evaluation import Evaluation
from lipvae.scores import SCORES as ALL_SCORES

SCORES = {name: ALL_SCORES[name] for name in ("hole_indicator", "is_log_likelihood", "kl")}


def scores(shift: float, n: int = 300, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: shift + torch.randn(n, generator=generator, dtype=torch.float64) for name in SCORES
    }


@pytest.fixture
def evaluation() -> Evaluation:
    return evaluate("inside", scores(0), {"near": scores(1, 200, 1), "far": scores(9, 100, 2)})


def text(table: object, width: int = 120) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_metrics_of_every_pair(evaluation: Evaluation) -> None:
    assert list(evaluation.metrics) == ["near", "far"]
    for outliers, by_score in evaluation.metrics.items():
        assert list(by_score) == list(SCORES)
        for name, found in by_score.items():
            truth = ood_metrics(evaluation.inliers[name], evaluation.outliers[outliers][name])
            assert found == truth


def test_json(evaluation: Evaluation) -> None:
    content = json.loads(json.dumps(evaluation.to_dict()))
    assert content["inliers"] == {"name": "inside", "count": 300}
    near = content["outliers"][0]
    assert (near["name"], near["count"]) == ("near", 200)
    assert near["scores"]["kl"]["auroc"] == evaluation.metrics["near"]["kl"].auroc
    assert set(near["scores"]["kl"]) == {"auroc", "auprc", "auprc_inlier", "fpr80"}


def test_sets_must_have_the_same_scores() -> None:
    outliers = scores(1)
    del outliers["kl"]
    with pytest.raises(ValueError, match="outliers 'out' must have the scores of the inliers"):
        evaluate("in", scores(0), {"out": outliers})


def test_metrics_table(evaluation: Evaluation) -> None:
    shown = text(metrics_table(evaluation, "a title"))
    assert "a title" in shown
    assert "Inliers: inside" in shown
    for name, score in SCORES.items():
        line = next(line for line in shown.splitlines() if score.title in line)
        found = evaluation.metrics["near"][name]
        values = (found.auroc, found.auprc, found.auprc_inlier, found.fpr80)
        assert [cell.strip() for cell in line.split("│")[3:7]] == [f"{100 * v:.2f}" for v in values]
    assert shown.count("100.00") >= len(SCORES)  # "far" is perfectly apart
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["a[/b]c", "x[red]y", "[bold]", ":smile:"])
def test_names_are_no_markup(name: str, tmp_path: Path) -> None:
    found = evaluate(name, scores(0), {f"{name}2": scores(1)})
    shown = text(metrics_table(found, f"of {name}"))
    assert f"of {name}" in shown
    assert f"Inliers: {name}." in shown
    assert f"│ {name}2 " in shown
    model = LipschitzVAE((1, 8, 8), 2, "fc", (16,)).eval()
    assert f"observed: {name} " in text(latent_table(model.certificate(), {name: torch.ones(1, 2)}))


def test_latent_table() -> None:
    torch.manual_seed(0)
    model = LipschitzVAE((1, 8, 8), 4, "fc", (16,)).eval()
    with torch.no_grad():
        means = model.encode(torch.rand(50, 1, 8, 8)).loc
    certificate = model.certificate()
    lines = text(latent_table(certificate, {"images": means})).splitlines()
    guaranteed = next(line for line in lines if "guaranteed by M = 4" in line)
    assert f"{2:.4f}" in guaranteed
    certified = next(line for line in lines if "certified" in line)
    observed = next(line for line in lines if "observed: images" in line)
    low, high, _ = (float(cell) for cell in observed.split("│")[2:5])
    assert low == pytest.approx(float(means.min()), abs=1e-4)
    assert high == pytest.approx(float(means.max()), abs=1e-4)
    certified_low, certified_high, _ = (float(cell) for cell in certified.split("│")[2:5])
    assert certified_low <= low <= high <= certified_high


def test_histograms(evaluation: Evaluation, tmp_path: Path) -> None:
    path = draw_histograms(evaluation, tmp_path / "h.png", "a title")
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(pixels, axis=0)}
    assert (0xD5, 0x5E, 0x00) in colours  # the first outlier set
    assert (0x00, 0x72, 0xB2) in colours  # the second


def test_names_are_no_mathematics_and_all_in_the_legend(tmp_path: Path) -> None:
    plain = evaluate("in", scores(0), {"a_b": scores(1)})
    odd = evaluate("in", scores(0), {"_a$x_$^b": scores(1)})
    sizes = [
        len(draw_histograms(found, tmp_path / "h.svg", r"of $\frac$").read_bytes())
        for found in (plain, odd)
    ]
    assert sizes[1] > sizes[0]  # characters are drawn as paths


@pytest.mark.parametrize("name", ["h.txt", "h", "h.png.part"])
def test_a_picture_of_another_kind(evaluation: Evaluation, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.png, \.pdf, \.svg, got"):
        draw_histograms(evaluation, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(5, dtype=torch.float64),
        torch.tensor([1.0, math.inf, 2.0]).double(),
        torch.tensor([math.nan]).double(),
        10.0 ** torch.linspace(-3, 6, 50, dtype=torch.float64),
        -1e300 * torch.rand(9, dtype=torch.float64),
    ],
)
def test_histograms_of_odd_scores(values: torch.Tensor, tmp_path: Path) -> None:
    odd = {"kl": values}
    found = Evaluation("in", odd, {"out": {"kl": values + 1}}, {})
    assert draw_histograms(found, tmp_path / "h.png").stat().st_size > 1000


def test_without_matplotlib(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lipvae\[plot\]'"):
        draw_histograms(evaluation, tmp_path / "h.png")
