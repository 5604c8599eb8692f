"""The bench: its arithmetic, its rows, its verdicts and its report."""

import json

import load_bench  # noqa: F401
import pytest
import torch

import lipvae
from bench import (
    bars,
    bench_importance_linear,
    bench_l1_ball,
    bench_lipschitz_linear,
    bench_scores,
    bench_vmf,
    harness,
    memory,
    report,
    results,
    roofline,
)
from bench.__main__ import main
from bench.harness import Budget, Case, Provider, Timing, measure, run_case
from bench.kinds import KINDS, multiplying
from bench.settings import COPY, KERNEL, PUBLIC, Settings

TINY = Budget(seconds=0.01, min_rounds=2, max_rounds=4)
QUICK = Settings(quick=True)


class FakeClock:
    """Seconds a call as told, and which provider was timed when."""

    def __init__(self, seconds):
        self.seconds, self.order = seconds, []

    def __call__(self, run, calls):
        self.order.append(run())
        return self.seconds[run()]


def providers(*names):
    return [Provider(name, "peer", lambda name=name: name) for name in names]


def test_quantiles_interpolate():
    assert harness.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert harness.quantile([1.0, 2.0], 0.1) == pytest.approx(1.1)
    assert harness.quantile([5.0], 0.9) == 5.0


def test_a_ratio_pairs_samples_of_one_round():
    # The machine slows tenfold after the first round; both providers slow alike.
    ours = Timing({0: 2.0, 1: 20.0, 2: 20.0})
    limit = Timing({0: 1.0, 1: 10.0, 2: 10.0})
    assert ours.ratio_to(limit) == 2.0
    # A provider of fewer rounds is compared in its own rounds alone.
    assert Timing({0: 3.0}).ratio_to(limit) == 3.0


def test_rounds_are_spread_over_the_run():
    assert harness.schedule(3, 9) == {0, 3, 6}
    assert harness.schedule(5, 5) == set(range(5))


def test_measure_interleaves_and_gives_slow_providers_fewer_rounds():
    clock = FakeClock({"fast": 1e-3, "slow": 1.0})
    timings = measure(providers("fast", "slow"), Budget(1.0, 3, 20), clock)
    assert len(timings["fast"].samples) == 20
    assert len(timings["slow"].samples) == 3
    assert timings["slow"].ratio_to(timings["fast"]) == pytest.approx(1000)
    timed = "".join(name[0] for name in clock.order[3:])
    assert "sf" in timed.replace("ff", "f")  # slow samples lie between fast ones
    assert timed.strip("f").count("f") > 5


def test_short_calls_are_repeated_inside_a_sample():
    timings = measure(providers("short", "long"), TINY, FakeClock({"short": 1e-6, "long": 1e-2}))
    assert timings["short"].calls == round(harness.SAMPLE_SECONDS / 1e-6)
    assert timings["long"].calls == 1


def test_measure_refuses_equal_names():
    with pytest.raises(ValueError, match="must differ"):
        measure(providers("a", "a"), TINY, FakeClock({"a": 1.0}))


def test_a_failing_peer_is_named_and_ours_is_raised():
    def fail():
        raise RuntimeError("no compiler")

    ours = Provider("ours", "ours", lambda: None)
    limit = Provider("limit", "limit", lambda: None)
    case = Case("op", "v", {"n": 1}, torch.float32, [limit, ours, Provider("peer", "peer", fail)])
    rows = run_case(case, TINY, "cpu")
    assert [row["provider"] for row in rows] == ["limit", "ours"]
    assert case.skipped == {"peer": "RuntimeError: no compiler"}
    broken = Case("op", "v", {"n": 1}, torch.float32, [limit, Provider("ours", "ours", fail)])
    with pytest.raises(RuntimeError, match="no compiler"):
        run_case(broken, TINY, "cpu")


def test_a_replayed_graph_is_compared_with_a_replayed_limit(monkeypatch):
    monkeypatch.setattr(harness, "captured", lambda run: run)
    limits = [
        Provider("clone", "limit", lambda: None),
        Provider("copy", "limit", lambda: None, graph=True),
    ]
    skipped = {}
    ours = Provider("ours", "ours", lambda: None, "clone", graph=True)
    found = {p.name: p for p in harness._with_graphs([*limits, ours], skipped)}
    assert found["ours, graph"].against == "copy, graph"
    assert set(found) == {"clone", "copy", "copy, graph", "ours", "ours, graph"}
    assert not skipped
    # Launch-bound limits would flatter it.
    found = {p.name for p in harness._with_graphs([limits[0], ours], skipped)}
    assert found == {"clone", "ours"}
    assert "no limit" in skipped["ours, graph"]

    def refuse(run):
        raise RuntimeError("a copy from the host")

    monkeypatch.setattr(harness, "captured", refuse)
    found = {p.name for p in harness._with_graphs([*limits, ours], skipped)}
    assert found == {"clone", "copy", "ours"}
    assert "a copy from the host" in skipped["copy, graph"]
    assert "no limit" in skipped["ours, graph"]


def test_peak_memory_counts_what_is_freed_again():
    size = 64 * 1024**2

    def run():
        torch.ones(size // 4)

    measured = memory.peak_extra_bytes(run)
    if measured is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert 0.9 * size < measured < 1.5 * size


@pytest.fixture(scope="module")
def run_rows(tmp_path_factory):
    """One tiny run of one op through the command line."""
    path = tmp_path_factory.mktemp("bench") / "rows.json"
    threads = torch.get_num_threads()
    cases = bench_l1_ball.cases
    small = (
        bench_l1_ball.forward_case("heavy", (8, 32), QUICK, streamed=False, compile_=False),
        bench_l1_ball.backward_case("heavy", (8, 32), QUICK),
    )
    bench_l1_ball.cases = lambda settings: iter(small)
    try:
        assert main(["--quick", "--op", "l1_ball", "--json", str(path), "--check"]) == 0
    finally:
        bench_l1_ball.cases = cases
        torch.set_num_threads(threads)
    return path


def test_rows_have_every_field(run_rows):
    content = json.loads(run_rows.read_text())
    assert len(content["rows"]) > 6
    for row in content["rows"]:
        assert row.keys() == results.FIELDS
        assert 0 < row["q10_s"] <= row["median_s"] <= row["q90_s"]
        assert row["rounds"] >= 3
        assert row["versions"]["torch"] == torch.__version__
        assert (row["to_limit"] is None) == (row["role"] == "limit")
        assert (row["to_ours"] is not None) == (row["role"] == "peer")
    roles = {row["role"] for row in content["rows"]}
    assert roles == {"ours", "peer", "limit"}


def test_report_draws_and_fills_the_page(run_rows, tmp_path):
    page = tmp_path / "performance.md"
    begin, end = report.markers(report.MEASURED)
    page.write_text(f"# Before\n{begin}\nstale\n{end}\nAfter\n")
    written = report.write(results.load([run_rows]), tmp_path)
    text = page.read_text()
    assert written[-1] == page
    assert text.startswith("# Before")
    assert text.endswith("After\n")
    assert "stale" not in text
    assert "not measured on a GPU" in text
    assert report.CASES in text
    cases = (tmp_path / report.CASES).read_text()
    assert "sort (LNets)" in cases


def test_report_needs_its_markers():
    with pytest.raises(ValueError, match="must hold the lines"):
        report.replace_section("no markers", "measured", "text")


def test_files_of_another_form_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match="does not hold rows"):
        results.load([path])


def test_later_rows_replace_earlier_ones(run_rows, tmp_path):
    content = json.loads(run_rows.read_text())
    for row in content["rows"]:
        row["date"], row["median_s"] = "2999-01-01T00:00:00+00:00", 7.0
    later = tmp_path / "later.json"
    later.write_text(json.dumps(content))
    for order in ([later, run_rows], [run_rows, later]):
        assert {row["median_s"] for row in results.load(order)} == {7.0}


def fake_row(provider, **changes):
    row = dict.fromkeys(results.FIELDS) | {
        "op": "l1_ball", "variant": "forward, heavy rows", "shape": {"rows": 4, "cols": 4},
        "dtype": "float32", "data": "resident", "provider": provider, "role": "ours",
        "median_s": 1.0, "extra": {}, "work": {}, "device": "cpu", "device_name": "x", "threads": 1,
    }  # fmt: skip
    return row | changes


@pytest.mark.parametrize(("ratio", "met"), [(5.9, True), (6.1, False)])
def test_a_bar_judges_the_worst_case(ratio, met):
    rows = [
        fake_row(COPY),
        fake_row(KERNEL, limit=COPY, to_limit=2.0),
        fake_row(COPY, shape={"rows": 8, "cols": 8}),
        fake_row(KERNEL, shape={"rows": 8, "cols": 8}, limit=COPY, to_limit=ratio),
    ]
    verdict = next(v for v in bars.judge(rows) if v.bar.bound == 6)
    assert (verdict.best, verdict.worst, verdict.cases) == (2.0, ratio, 2)
    assert verdict.met is met
    assert "rows 8" in verdict.where


def test_bars_without_rows_are_not_met_silently():
    verdicts = bars.judge([])
    assert {v.met for v in verdicts} == {None}
    assert bars.table(verdicts).count("not measured") == len(bars.BARS)


def test_aims_are_judged_by_rows_of_a_gpu():
    sizes = {"batch": 4096, "in": 4096, "out": 4096}
    row = {
        "op": "lipschitz_linear", "variant": "products, tf32", "shape": sizes, "device": "cuda",
        "versions": {}, "date": "2026-01-01",
    }  # fmt: skip
    gemm = bench_lipschitz_linear.GEMM
    rows = [
        fake_row(gemm, **row),
        fake_row(PUBLIC, **row, limit=gemm, to_limit=1.2),
        fake_row(PUBLIC, **row | {"device": "cpu"}, limit=gemm, to_limit=9.0),
    ]
    verdict = next(v for v in bars.judge(rows, "cuda") if v.cases)
    assert (verdict.worst, verdict.met) == (1.2, False)
    assert len(bars.judge(rows, "cuda")) == len(bars.AIMS)
    page = report.section(rows, [])
    assert "### Aims on a GPU" in page
    assert "not measured on a GPU" not in page


def test_a_case_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys):
    def cases(settings):
        def fail():
            raise ValueError("of another dtype")

        limit, ours = Provider("limit", "limit", lambda: None), Provider("ours", "ours", fail)
        yield Case("vmf", "broken", {"n": 1}, torch.float32, [limit, ours])
        works = Provider("ours", "ours", lambda: None)
        yield Case("vmf", "sound", {"n": 1}, torch.float32, [limit, works])
        raise RuntimeError("no more")

    monkeypatch.setattr(bench_vmf, "cases", cases)
    monkeypatch.setattr(Settings, "budget", TINY)
    path = tmp_path / "rows.json"
    assert main(["--quick", "--op", "vmf", "--json", str(path)]) == 1
    assert {row["variant"] for row in json.loads(path.read_text())["rows"]} == {"sound"}
    printed = capsys.readouterr().out
    assert "vmf, broken, {'n': 1}: ValueError: of another dtype" in printed
    assert "vmf: RuntimeError: no more" in printed


@pytest.mark.parametrize("kind", KINDS)
def test_the_unfused_head_takes_images_in_float32(kind):
    """As a GPU runs it; importance of half logits is tested in tests/kernels."""
    case = bench_importance_linear.fused_case("bernoulli", (2, 2, 8), QUICK, kind)
    for provider in case.providers:
        if provider.role == "ours":
            with lipvae.backend("reference"):
                assert provider.run().isfinite().all()


@pytest.mark.parametrize("kind", ["float32", "tf32"])  # a CPU takes no halves
def test_products_of_each_kind(kind):
    case = bench_lipschitz_linear.product_case(kind, (8, 16, 4), QUICK)
    rows = run_case(case, TINY, "cpu")
    assert {row["provider"] for row in rows} >= {bench_lipschitz_linear.GEMM, PUBLIC}
    assert {row["dtype"] for row in rows} == {str(KINDS[kind][0]).removeprefix("torch.")}
    head = bench_importance_linear.fused_case("bernoulli", (2, 2, 8), QUICK, kind)
    assert {row["dtype"] for row in run_case(head, TINY, "cpu")} == {rows[0]["dtype"]}


def test_a_kind_of_product_is_set_for_the_call_alone():
    before = torch.get_float32_matmul_precision()
    assert multiplying("tf32", torch.get_float32_matmul_precision)() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"
    with pytest.raises(ZeroDivisionError):
        multiplying("tf32", lambda: 1 // 0)()
    assert torch.get_float32_matmul_precision() == before


def test_rooflines_name_what_binds():
    copy_bound, launch_bound = roofline.l1_ball(4096, 4096)[0], roofline.l1_ball(8, 8)[0]
    assert copy_bound.bound(roofline.H100)[1] == "bytes"
    assert launch_bound.bound(roofline.H100) == (2e-6, "launches")
    # 2 * 4 * 4096^2 bytes at 3.35 TB/s.
    assert copy_bound.bound(roofline.H100)[0] == pytest.approx(40.07e-6, rel=1e-3)


def test_cuda_is_refused_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "finds no GPU" in capsys.readouterr().err


def test_an_unknown_instruction_set_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--isa", "mmx"])
    assert "mmx" in capsys.readouterr().err


def test_each_score_has_its_cost():
    names = ("hole_indicator", "waic", "pixel_mean")
    shared = {"device": "cpu", "device_name": "a", "threads": 1}
    rows = [
        row | shared
        for name in names
        for row in run_case(bench_scores.score_case(name, "fc", QUICK), TINY, "cpu")
    ]
    lines = report.scores_table(results.cases(rows)).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in names]
    for line, name in zip(lines, names, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[3].replace(",", "")) > 0
        assert (cells[4] == "") == (name == "pixel_mean")  # which decodes nothing
    assert [line.split(" | ")[1:3] for line in lines] == [["64", ""], ["8", "8"], ["64", ""]]
