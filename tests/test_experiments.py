"""The experiments: plans, caching, judging, and whole runs on scikit-learn's digits."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats
import torch
from typer.testing import CliRunner

import lipvae
from lipvae.cli import app
from lipvae.data import DataUnavailableError
from lipvae.experiments import (
    EXPERIMENTS,
    FULL,
    QUICK,
    Images,
    Pair,
    Runner,
    compactness,
    dimensions,
    ensembles,
    figure1,
    figure2,
    figure3,
    paper,
    parse_pairs,
    recipe,
    reproduce,
    rows,
    runner,
    settings,
    store,
    table1,
    table2,
)
from lipvae.experiments.images import lift
from lipvae.experiments.rows import Row
from lipvae.experiments.tasks import Task, run_all
from lipvae.metrics import ood_metrics
from lipvae.models import MODELS

PAIR = Pair("digits", "photo-patches")
TINY = replace(
    QUICK,
    grey_epochs=1,
    images=12,
    toy_images=12,
    num_samples=4,
    num_draws=2,
    draw_samples=2,
    calibration_images=10,
    regret_images=6,
    regret=replace(QUICK.regret, steps=3),
)
SMALL_SPHERE = replace(
    settings.SPHERE, options={"latent_dim": 3, "hidden": (16,), "architecture": "fc"}
)


def make(tmp_path: Path, lines: list[str] | None = None) -> Runner:
    report = (lambda line: None) if lines is None else lines.append
    return Runner(tmp_path, TINY, Images(), report=report)


# Settings.


def test_pairs() -> None:
    default = (PAIR,)
    assert parse_pairs(None, default) == default
    assert parse_pairs("paper", ()) == settings.PAPER_PAIRS
    assert set(parse_pairs("all", ())) == {*settings.PAPER_PAIRS, *settings.FURTHER_PAIRS}
    assert parse_pairs("mnist:kmnist, mnist:kmnist", ()) == (Pair("mnist", "kmnist"),)
    for text in ("mnist", "mnist:mnist", "near-black:mnist", "mnist:nothing", ""):
        with pytest.raises(ValueError, match="pairs must be all, paper"):
            parse_pairs(text, ())
    with pytest.raises(ValueError, match="colour outliers of grey inliers"):
        parse_pairs("mnist:cifar10", ())
    with pytest.raises(ValueError, match="larger than 8x8"):
        parse_pairs("digits:mnist", ())


def test_models_follow_the_images() -> None:
    assert settings.VANILLA.arguments((1, 28, 28))["latent_dim"] == 10
    colour = settings.LIPSCHITZ.arguments((3, 32, 32))
    model = lipvae.LipschitzVAE(**colour, hidden=(8, 16))
    assert (model.latent_dim, model.lipschitz) == (70, 10.0)
    assert settings.lipschitz_spec(1, decoder=3).options["decoder_lipschitz"] == 3.0


def test_overrides() -> None:
    budget = FULL.override(7, 50, 9)
    assert (budget.epochs("mnist"), budget.epochs("cifar10")) == (7, 7)
    assert (budget.images, budget.regret_images, budget.num_samples) == (50, 50, 9)
    assert (budget.toy_images, budget.toy_samples) == (50, 9)
    assert FULL.override(None, None, None) is FULL


# Images.


def test_grey_images_are_lifted_to_colour() -> None:
    images = torch.rand(2, 1, 28, 27)
    lifted = lift(images, (3, 32, 32))
    assert torch.equal(lifted[:, 0], lifted[:, 2])
    assert torch.equal(lifted[:, 1, 2:30, 2:29], images[:, 0])
    assert lifted.sum().item() == pytest.approx(3 * images.sum().item(), rel=1e-5)
    with pytest.raises(ValueError, match="cannot be lifted"):
        lift(torch.rand(1, 3, 8, 8), (1, 8, 8))


def test_the_choice_of_test_images_is_fixed() -> None:
    first, second = (Images().test("digits", 20, "digits") for _ in range(2))
    assert torch.equal(first, second)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 20
    everything = Images().test("digits", None, "digits")
    assert len(everything) == 445
    assert Images().test("near-black", 5, "cifar10").shape == (5, 3, 32, 32)


def test_a_set_that_cannot_be_had_is_said_so(tmp_path, monkeypatch) -> None:
    def load(name: str, split: str, **options: object) -> lipvae.data.ImageSet:
        raise DataUnavailableError(name, ["test_32x32.mat"], [], "Look elsewhere.")

    monkeypatch.setattr(lipvae.data, "load", load)
    images = Images()
    assert images.obstacle("svhn", "test") == (
        "svhn could not be fetched: no source gives test_32x32.mat"
    )
    with pytest.raises(DataUnavailableError):
        images.test("svhn", 1, "cifar10")
    pair = Pair("cifar10", "svhn")
    written = reproduce("table2", Runner(tmp_path, TINY, images), [0], [pair])
    result = json.loads(written.json.read_text())
    assert "could not be fetched" in result["pairs"][0]["unavailable"]
    assert result["pairs"][0]["rows"] == []
    assert "Not run: cifar10 could not be fetched" in written.markdown.read_text()


def test_sets_cut_to_some_classes(monkeypatch) -> None:
    images = Images()
    whole, two = lipvae.data.load("digits", "train"), images.train("digits-01")
    assert torch.equal(two.images, whole.images[whole.labels < 2])
    rest = images.test("digits-23456789", None, "digits-01")
    assert len(rest) + len(images.test("digits-10", None, "digits")) == 445
    assert images.count("digits-23456789", "test") == len(rest)
    assert images.shape("digits-01") == (1, 8, 8)
    assert images.train_count("digits-01") == pytest.approx(len(two), rel=0.05)
    assert parse_pairs("digits-01:digits-2", ())[0].title == (
        "digits, classes 0 and 1 vs digits, class 2"
    )
    assert (FULL.epochs("mnist-01"), FULL.epochs("mnist")) == (FULL.toy_epochs, FULL.grey_epochs)
    for text in (
        "digits-00:digits-2",
        "digits-01:digits-01",
        "near-black-0:digits",
        "mnist-:mnist",
    ):
        with pytest.raises(ValueError, match="pairs must be all, paper"):
            parse_pairs(text, ())
    unlabelled = replace(whole, labels=None)
    monkeypatch.setattr(lipvae.data, "load", lambda *_, **__: unlabelled)
    reason = Images().obstacle("kmnist-3", "train")
    assert reason == "kmnist-3 could not be fetched: no source gives labels"


# Tasks.


def test_tasks_skip_what_is_done_and_estimate_the_rest() -> None:
    now, done, lines = [0.0], set(), []

    def task(key: str, cost: float) -> Task:
        def run() -> None:
            now[0] += 2 * cost  # half as fast as the costs say
            done.add(key)

        return Task(key, f"make {key}", cost, lambda: key in done, run)

    done.add("there")
    tasks = [task("there", 100.0), task("a", 10.0), task("a", 10.0), task("b", 30.0)]
    spent = run_all([*tasks, task("c", 60.0)], lines.append, clock=lambda: now[0])
    assert spent == 200.0
    assert lines == [
        "[1/3] make a",
        "[2/3] make b (0:20 min gone, about 3:00 min left)",
        "[3/3] make c (1:20 min gone, about 2:00 min left)",
    ]


# Judging.


def test_the_positive_class() -> None:
    inliers, outliers = torch.randn(300), torch.randn(200) + 1.5
    plain = rows.judge(inliers, outliers, "outliers")
    expected = ood_metrics(inliers, outliers)
    assert plain["auroc"] == pytest.approx(100 * expected.auroc)
    assert plain["fpr80"] == pytest.approx(100 * expected.fpr80)
    turned = rows.judge(inliers, outliers, "inliers")
    assert turned["auroc"] == pytest.approx(plain["auroc"])
    assert turned["auprc"] == pytest.approx(plain["auprc_other"])
    assert turned["auprc_other"] == pytest.approx(plain["auprc"])
    # FPR80 by hand: from the lowest score up, everything before the 241st of 300 inliers.
    end = inliers.sort().values[240]
    assert turned["fpr80"] == pytest.approx(100 * float((outliers < end).double().mean()))


def test_rows_stand_beside_the_paper_s() -> None:
    class Stored:
        def scores(self, group, spec, inliers, seed, images):
            if seed == 2:
                return None  # not there yet
            shift = {"fashion-mnist": 0.0, "mnist": 2.0}[images]
            noise = torch.randn(500, generator=torch.Generator().manual_seed(seed + len(images)))
            return {"hole_indicator": noise + shift}

    pair = Pair("fashion-mnist", "mnist")
    row = Row(settings.LIPSCHITZ, "hole_indicator", in_paper=True)
    found = rows.evaluate(Stored(), row, pair, [0, 1, 2])
    auroc = found["metrics"]["auroc"]
    assert found["seeds"] == [0, 1]
    assert auroc["mean"] == pytest.approx(sum(auroc["values"]) / 2)
    assert auroc["spread"] == pytest.approx(abs(auroc["values"][0] - auroc["values"][1]) / 2**0.5)
    assert found["paper"] == {"auroc": 99.69, "auprc": 99.65, "fpr80": 0.28}
    assert found["difference"]["auroc"] == pytest.approx(auroc["mean"] - 99.69)
    unknown = rows.evaluate(Stored(), Row(settings.VANILLA, "hole_indicator"), pair, [0])
    assert unknown["paper"] is None
    assert unknown["metrics"]["auroc"]["spread"] is None
    assert rows.evaluate(Stored(), row, pair, [2])["metrics"] is None


def test_every_figure_of_the_paper_has_a_row() -> None:
    names = {row.name: row for row in table2.ROWS}
    assert len(names) == len(table2.ROWS)
    for row, inliers, outliers in paper.TABLE_2:
        assert names[row].in_paper
        assert Pair(inliers, outliers) in settings.PAPER_PAIRS
    for name in ("waic", "disagreement", "entropy"):
        assert names[f"bayesian/{name}"].positive == "inliers"


def test_scores_have_one_group_each() -> None:
    assert set(runner.GROUPS["statistics"]) < set(runner.GROUPS["single"])
    assert runner.GROUPS["refined"] == runner.GROUPS["statistics"]
    assert runner.GROUPS["ensemble-refined"] == runner.GROUPS["ensemble"]
    means = set(runner.GROUPS["ensemble"]) - set(runner.GROUPS["draws"])
    assert means == {"mean_hole_indicator", "mean_stds_of_lls"}
    again = ("statistics", "refined", "ensemble", "ensemble-refined")
    groups = {group: names for group, names in runner.GROUPS.items() if group not in again}
    listed = [name for names in groups.values() for name in names]
    assert sorted([*listed, *means]) == sorted(lipvae.scores.SCORES)
    assert len(set(listed)) == len(listed)


# Whole runs.


def test_table_2_on_digits_and_again(tmp_path, monkeypatch) -> None:
    lines: list[str] = []
    written = reproduce("table2", make(tmp_path, lines), [0, 1], [PAIR], "the command")
    assert sum("train" in line for line in lines) == 6
    result = json.loads(written.json.read_text())
    found = {row["row"]: row for row in result["pairs"][0]["rows"]}
    assert found.keys() == {row.name for row in table2.ROWS}
    for row in found.values():
        values = row["metrics"]["auroc"]["values"]
        assert len(values) == (1 if row["row"].startswith("none/") else 2)
        assert all(0 <= value <= 100 for value in values)
        assert row["paper"] is None
    assert {model["model"] for model in result["models"]} == {"vanilla", "lipschitz", "bayesian"}
    assert all(m["bits_per_dimension"]["mean"] > 0 for m in result["models"])
    costs = {(cost["title"], cost["group"]): cost for cost in result["costs"]}
    assert len(costs) == len(result["costs"]) == 7
    assert costs["VAE", "single"]["images"] == 2 * 2 * TINY.images
    assert costs["No model", "confounds"]["images"] == 2 * TINY.images
    text = written.markdown.read_text()
    assert "`the command`" in text
    assert text.count("\n| VAE: Hole indicator | outliers |") == 1
    # The same command computes nothing, and gives the same.
    monkeypatch.setattr(Runner, "_train", None)
    monkeypatch.setattr(Runner, "_score", None)
    lines.clear()
    again = reproduce("table2", make(tmp_path, lines), [0, 1], [PAIR], "the command")
    assert all("write table2" in line for line in lines)
    assert json.loads(again.json.read_text()) == result


def test_scores_are_those_of_the_scorer(tmp_path) -> None:
    run = make(tmp_path)
    spec = settings.BAYESIAN
    for group in ("single", "draws"):
        run.run([run.train_task(spec, "digits", 3)])
        run.run([run.score_task(group, spec, "digits", 3, "digits")])
    model = run.model(spec, "digits", 3)
    x = run.images.test("digits", TINY.images, "digits")
    found = run.scores("draws", spec, "digits", 3, "digits")
    expected = lipvae.Scorer(model, tuple(found), TINY.draw_samples, 3, num_draws=2)(x)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    found = run.scores("single", spec, "digits", 3, "digits")
    scorer = lipvae.Scorer(model, tuple(found), TINY.num_samples, 3)
    scorer.calibrate(run.images.train("digits"), TINY.calibration_images)
    expected = scorer(x)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_ensembles_on_digits(tmp_path, monkeypatch) -> None:
    plain, bayesian = (
        replace(spec, options={"architecture": "fc", "hidden": (16,)})
        for spec in (settings.VANILLA, settings.BAYESIAN)
    )
    made = (
        settings.EnsembleSpec(plain, "independent", 2),
        settings.EnsembleSpec(bayesian, "bayes"),
        settings.EnsembleSpec(plain, "swag"),
        settings.EnsembleSpec(plain, "sghmc"),
    )
    monkeypatch.setattr(ensembles, "ENSEMBLES", made)
    run = make(tmp_path)
    written = reproduce("ensembles", run, [0, 1], [PAIR])
    (pair,) = json.loads(written.json.read_text())["pairs"]
    assert [e["title"] for e in pair["ensembles"]] == [
        "VAE, 2 trainings",
        "Bayesian VAE, draws",
        "VAE, SWAG",
        "VAE, SGHMC",
    ]
    for entry in pair["ensembles"]:
        scores = entry["scores"]["ensemble"]
        assert len(scores["together"]["waic"]["auroc"]["values"]) == 2
        assert len(scores["alone"]["hole_indicator"]["auroc"]["values"]) == 4
        assert ("ensemble-refined" in entry["scores"]) == ("trainings" in entry["title"])
        assert math.isfinite(entry["test_log_likelihood"]["mean"])
    # The second ensemble of two trainings has the seeds 2 and 3, and the public scorer's numbers.
    members = [run.model(plain, "digits", seed) for seed in (2, 3)]
    names = ["mean_stds_of_lls", "mean_hole_indicator"]
    scorer = lipvae.Scorer(lipvae.Ensemble(members), names, TINY.num_samples, seed=1, refine=2)
    sets = [scorer(run.images.test(n, 12, "digits")) for n in ("digits", "photo-patches")]
    for name in names:
        expected = 100 * ood_metrics(*(s[name] for s in sets)).auroc
        scores = pair["ensembles"][0]["scores"]["ensemble-refined"]
        assert scores["together"][name]["auroc"]["values"][1] == pytest.approx(expected)
    one = lipvae.Scorer(members[1], ["hole_indicator"], TINY.num_samples, seed=1, refine=2)
    sets = [one(run.images.test(n, 12, "digits")) for n in ("digits", "photo-patches")]
    expected = 100 * ood_metrics(*(s["hole_indicator"] for s in sets)).auroc
    assert scores["alone"]["hole_indicator"]["auroc"]["values"][3] == pytest.approx(expected)
    # Draws around a model are not the model.
    swag = run.ensemble(made[2], "digits", 0)
    trained = run.model(plain, "digits", 0)
    weights = [m.decoder[0].weight for m in (*swag.members, trained)]
    assert len(swag) == TINY.num_draws
    assert not any(torch.equal(weights[0], other) for other in weights[1:])
    text = written.markdown.read_text()
    assert text.count("| VAE, SGHMC |") == 3


def test_table_1_on_digits(tmp_path, monkeypatch) -> None:
    small = replace(
        settings.SPHERE, options={"latent_dim": 3, "hidden": (16,), "architecture": "fc"}
    )
    plain = replace(table1.PLAIN, options=small.options)
    monkeypatch.setattr(table1, "SPECS", (small, plain))
    made = tuple(Row(spec, score) for spec in (small, plain) for score in ("elbo", "kl"))
    monkeypatch.setattr(table1, "ROWS", made)
    pairs = [Pair("digits-01", "digits-23456789"), Pair("digits-01", "photo-patches")]
    budget = replace(TINY, toy_epochs=1, toy_images=10, toy_samples=3)
    run = Runner(tmp_path, budget, Images(), report=str)
    written = reproduce("table1", run, [0, 1, 2], pairs)
    result = json.loads(written.json.read_text())
    taken = result["budget"]
    assert (taken["images"], taken["num_samples"], result["confidence"]) == (10, 3, 0.999)
    held_out = result["pairs"][0]
    counts = [run.images.count(*of) for of in (("digits-01", "test"), ("digits-23456789", "train"))]
    assert held_out["ratios"]["train"] == pytest.approx(counts[1] / counts[0])
    row = held_out["rows"][0]
    auroc = row["metrics"]["auroc"]
    assert len(auroc["values"]) == 3
    low, high = scipy.stats.t.interval(0.999, 2, auroc["mean"], scipy.stats.sem(auroc["values"]))
    assert auroc["spread"] == pytest.approx((high - low) / 2)
    # The number is that of a scorer with the same seed and K.
    toy = table1.toy(run)
    scorer = lipvae.Scorer(toy.model(small, "digits-01", 1), ["elbo"], 3, seed=1)
    scores = [
        scorer(run.images.test(name, 10, "digits"))["elbo"]
        for name in ("digits-01", "digits-23456789")
    ]
    assert auroc["values"][1] == pytest.approx(100 * ood_metrics(*scores).auroc)
    text = written.markdown.read_text()
    assert "99.9% confidence interval" in text
    assert "| Hyperspherical VAE, m = 3 | ELBO |" in text
    assert len(result["models"]) == 2


def test_outliers_are_weighted_to_their_number() -> None:
    inliers, outliers = torch.randn(40), torch.randn(25) + 1
    plain = ood_metrics(inliers, outliers).auprc
    assert table1.weighted_auprc(inliers, outliers, 25 / 40) == pytest.approx(plain)
    repeated = ood_metrics(inliers, outliers.repeat(8)).auprc
    assert table1.weighted_auprc(inliers, outliers, 8 * 25 / 40) == pytest.approx(repeated)


def test_the_paper_s_table_1_has_its_rows() -> None:
    names = {row.name for row in table1.ROWS}
    for row, inliers, outliers in paper.TABLE_1:
        assert row in names
        assert Pair(inliers, outliers) in table1.DEFAULT_PAIRS


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table2, "ROWS", (Row(settings.VANILLA, "elbo"),))
    whole = reproduce("table2", make(tmp_path / "whole"), [0], [PAIR])
    stopped = make(tmp_path / "parts")
    original = Runner._score

    def interrupted(self, path, *arguments):
        if "photo-patches" in path.name:
            raise KeyboardInterrupt
        original(self, path, *arguments)

    monkeypatch.setattr(Runner, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce("table2", stopped, [0], [PAIR])
    monkeypatch.setattr(Runner, "_score", original)
    monkeypatch.setattr(Runner, "_train", None)
    parts = reproduce("table2", stopped, [0], [PAIR])
    pairs = [json.loads(w.json.read_text())["pairs"] for w in (whole, parts)]
    assert pairs[0] == pairs[1]


def test_another_configuration_is_another_result(tmp_path) -> None:
    run = make(tmp_path)
    other = Runner(tmp_path, replace(TINY, grey_epochs=2, num_samples=5), Images())
    spec = settings.VANILLA
    assert run.model_key(spec, "digits", 0) != other.model_key(spec, "digits", 0)
    assert run.model_key(spec, "digits", 0) != run.model_key(spec, "digits", 1)
    paths = [r._scores_path("single", None, "digits", 0, "digits") for r in (run, other)]
    assert paths[0] != paths[1]


def test_figure_2_on_digits(tmp_path) -> None:
    written = reproduce("figure2", make(tmp_path), [0], [PAIR])
    result = json.loads(written.json.read_text())["pairs"][0]
    assert result["missing"] == ["kmnist has larger images than digits"]
    for panel in result["panels"]:
        assert set(panel["sets"]) == {"digits", "photo-patches", "near-black", "near-white"}
        step = panel["grid"][1] - panel["grid"][0]
        for name, of in panel["sets"].items():
            assert of["quantiles"] == sorted(of["quantiles"])
            if panel["certified_norm"] is not None:
                assert of["quantiles"][-1] <= panel["certified_norm"]
            if not name.startswith("near-"):
                assert sum(of["density"]) * step == pytest.approx(1, abs=0.4)
    assert written.figure.read_bytes().startswith(b"\x89PNG")


def test_figure_1_on_digits(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(figure1, "SPHERE", SMALL_SPHERE)
    pairs = [Pair("digits-01", "digits-23456789"), Pair("digits-01", "photo-patches")]
    run = Runner(tmp_path, replace(TINY, toy_epochs=1), Images())
    written = reproduce("figure1", run, [0], pairs)
    result = json.loads(written.json.read_text())
    (sphere,) = result["spheres"]
    # The density integrates to 1 over the sphere.
    colatitude = (torch.arange(figure1.LATITUDES) + 0.5) * math.pi / figure1.LATITUDES
    area = colatitude.sin() * (math.pi / figure1.LATITUDES) * (2 * math.pi / figure1.LONGITUDES)
    density = torch.tensor(sphere["log_density"]).view(figure1.LATITUDES, -1).exp()
    assert float((density.sum(1) * area).sum()) == pytest.approx(1, rel=2e-3)
    assert list(sphere["sets"]) == ["digits-01", "digits-23456789", "photo-patches"]
    model = run.model(SMALL_SPHERE, "digits-01", 0)
    x = run.images.test("digits-01", figure1.POINTS, "digits-01")
    with torch.no_grad():
        loc = model.encode(x).loc
    found = torch.tensor(sphere["sets"]["digits-01"]["points"])
    torch.testing.assert_close(found, loc, atol=1e-4, rtol=0)
    assert written.figure.read_bytes().startswith(b"\x89PNG")
    # The page holds the same points, and needs nothing from elsewhere.
    text = written.page.read_text()
    assert "://" not in text
    assert "src=" not in text
    content = text.partition('type="application/json">')[2].partition("</script>")[0]
    shown = json.loads(content)["spheres"][0]
    assert shown["sets"][0]["points"] == sphere["sets"]["digits-01"]["points"]
    shades = base64.b64decode(shown["shades"])
    assert len(shades) == figure1.LATITUDES * figure1.LONGITUDES
    assert max(shades) == 255


def test_cells_of_the_sphere() -> None:
    cells = figure1._cells(figure1.grid())
    assert torch.equal(cells, torch.arange(len(cells)))
    corners = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, -1e-9, 0], [-1, 0, 0]])
    assert int(figure1._cells(corners).max()) < figure1.LATITUDES * figure1.LONGITUDES


def test_frames_are_right_handed() -> None:
    import numpy as np

    for towards in ((0.0, 0.0, 2.0), (0.3, -0.5, 0.1), (0.0, 0.0, 0.0)):
        frame = figure1._frame(np.array(towards))
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(frame) == pytest.approx(1)
        assert frame[2] @ np.array(towards) == pytest.approx(np.linalg.norm(towards))


def test_dimensions_on_digits(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dimensions, "DIMENSIONS", (2, 10))
    written = reproduce("dimensions", make(tmp_path), [0], [PAIR])
    result = json.loads(written.json.read_text())
    points = result["pairs"][0]["points"]
    assert [(p["family"], p["m"]) for p in points] == [
        (family, m) for m in (2, 10) for family in ("HypersphericalVAE", "VAE")
    ]
    assert all(p["kl"]["mean"] > 0 for p in points if p["family"] == "VAE")
    assert all(0 <= p["scores"]["hole_indicator"]["auroc"]["mean"] <= 100 for p in points)
    areas = result["log_areas"]
    assert areas["3"] == pytest.approx(math.log(4 * math.pi))
    assert max(areas, key=areas.get) == "7"  # and from there it falls
    assert written.figure.read_bytes().startswith(b"\x89PNG")
    # The plain model of ten dimensions is that of Table 2.
    run = make(tmp_path)
    plain = dimensions.specs(10)[1]
    keys = [run.model_key(spec, "digits", 0) for spec in (plain, settings.VANILLA)]
    assert keys[0] == keys[1]


def test_densities() -> None:
    import numpy as np

    grid = np.linspace(-5, 5, 501)
    found = figure2.density(np.random.default_rng(0).normal(size=5000), grid)
    normal = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    assert np.abs(np.array(found) - normal).max() < 0.03
    assert figure2.density(np.full(10, 0.3), grid) is None


@pytest.mark.parametrize("name", ["figure3", "ablation-compactness", "ablation-recipe"])
def test_ablations_on_digits(tmp_path, monkeypatch, name: str) -> None:
    specs = {m: settings.lipschitz_spec(1.0, decoder=m) for m in (1, 5)}
    monkeypatch.setattr(figure3, "SPECS", specs)
    for module in (compactness, recipe):
        monkeypatch.setattr(module.ABLATION, "specs", tuple(specs.values()))
    made = tuple(Row(spec, score) for spec in specs.values() for score in figure3.SCORES)
    monkeypatch.setattr(figure3, "ROWS", made)
    written = reproduce(name, make(tmp_path), [0, 1], [PAIR])
    result = json.loads(written.json.read_text())["pairs"][0]
    entries = result["points"] if name == "figure3" else result["models"]
    assert len(entries) == 2
    score = "hole_indicator" if name == "figure3" else "Hole indicator, refined"
    found = [entry["scores"][score]["auroc"]["values"] for entry in entries]
    assert [len(values) for values in found] == [2, 2]
    if name == "figure3":
        assert [e["decoder_lipschitz"] for e in entries] == [1, 5]
    if name == "ablation-compactness":
        assert all(e["inlier_norm"]["mean"] >= 0 for e in entries)
    assert "± " in written.markdown.read_text()
    if name == "ablation-recipe":
        assert written.figure is None
    else:
        assert written.figure.read_bytes().startswith(b"\x89PNG")


def test_every_recipe_is_another_one() -> None:
    specs = recipe.ABLATION.specs
    models = [MODELS[spec.kind](**spec.arguments((1, 8, 8))) for spec in specs]
    found = {
        json.dumps([model.config, spec.training, spec.times_epochs], sort_keys=True)
        for model, spec in zip(models, specs, strict=True)
    }
    assert len(found) == len(specs) == len({spec.name for spec in specs})


def test_a_model_may_train_longer(tmp_path) -> None:
    maker = make(tmp_path)
    longer = replace(settings.VANILLA, times_epochs=2)
    keys = [maker.model_key(spec, "digits", 0) for spec in (settings.VANILLA, longer)]
    assert keys[0] != keys[1]
    maker.run([maker.train_task(longer, "digits", 0)])
    record = maker.record(longer, "digits", 0)
    assert len(record["history"]["train_elbo"]) == 2 * maker.budget.epochs("digits")


def test_no_figure_without_matplotlib(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(figure2, "SPECS", ())
    monkeypatch.setattr("lipvae.experiments.running.have_matplotlib", lambda: False)
    written = reproduce("figure2", make(tmp_path), [0], [PAIR])
    assert written.figure is None
    with pytest.raises(ValueError, match="target must be one of table1"):
        reproduce("table9", make(tmp_path), [0], [PAIR])


def test_json_has_no_nan(tmp_path) -> None:
    store.write_json(tmp_path / "a.json", {"x": [math.nan, math.inf, 1.5], 3: (1,)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, None, 1.5], "3": [1]}


# The command line.


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["reproduce", *arguments])


def test_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table2, "ROWS", (Row(settings.VANILLA, "elbo"), Row(None, "pixel_mean")))
    options = ["--quick", "--pairs", "digits:near-white", "--epochs", "1", "--images", "9"]
    options += ["--num-samples", "3", "--out", str(tmp_path)]
    result = invoke("table2", *options)
    assert result.exit_code == 0, result.output
    assert "train VAE on digits, seed 0" in result.output
    text = (tmp_path / "table2.md").read_text()
    assert (
        "`lipvae reproduce table2 --quick --pairs digits:near-white --epochs 1 "
        "--images 9 --num-samples 3`" in text
    )
    assert str(tmp_path) not in text
    quiet = invoke("table2", *options, "--quiet")
    assert "train" not in quiet.output
    assert "table2.json" in quiet.output


def test_command_line_refuses_and_stops(tmp_path, monkeypatch) -> None:
    result = invoke("table7", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert invoke("table2", "--pairs", "x", "--out", str(tmp_path)).exit_code == 2

    def stop(self, tasks):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", stop)
    result = invoke("table2", "--pairs", "digits:near-black", "--out", str(tmp_path))
    assert result.exit_code == 130
    assert set(EXPERIMENTS) == {
        "table1",
        "figure1",
        "dimensions",
        "table2",
        "figure2",
        "figure3",
        "ablation-compactness",
        "ablation-recipe",
        "ensembles",
    }
