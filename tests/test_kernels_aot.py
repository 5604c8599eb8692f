"""Ahead-of-time compilation of the Triton kernels; needs Triton, but no GPU and no interpreter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from lipvae.kernels import aot, l1_ball, loops
from lipvae.kernels._aot_variants import variants


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def test_the_committed_figures_are_clean_and_complete() -> None:
    baseline = json.loads(aot.BASELINE.read_text())
    table = {
        name: {target: aot.Figures(**figures) for target, figures in row.items()}
        for name, row in baseline["figures"].items()
    }
    assert aot.complaints(table, None) == []
    for target in aot.TARGETS:
        names = {variant.name for variant in variants(target)}
        assert len(names) == len(variants(target))
        assert names == {name for name, row in table.items() if target in row}


def test_what_may_spill_exists_and_does() -> None:
    figures = json.loads(aot.BASELINE.read_text())["figures"]
    for (name, target), spills in aot.ACCEPTED.items():
        assert figures[name][target]["spills"] == spills


@pytest.mark.parametrize("target", list(aot.TARGETS))
def test_every_target_compiles(target: str) -> None:
    (variant,) = (v for v in variants(target) if v.name == "l1_ball backward, 32 columns, fp32")
    figures = aot.compile_variant(variant, target)
    assert 0 < figures.registers < 64
    assert figures.spills == 0


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "l1_ball backward, 32 columns, fp32"
    arguments = ["--target", "sm_90", "--only", f"^{name}$", "--jobs", "1"]
    table = tmp_path / "table.md"
    assert aot.main([*arguments, "--json", "--markdown", str(table)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["figures"]) == [name]
    assert table.read_text().startswith("| kernel | sm_90 |\n| --- | ---: |\n| l1_ball backward")

    # A baseline with fewer registers makes the same figures a regression.
    report["figures"][name]["sm_90"]["registers"] -= aot.REGISTER_SLACK + 1
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(report))
    monkeypatch.setattr(aot, "BASELINE", baseline)
    assert aot.main(arguments) == 1
    assert "registers, was" in capsys.readouterr().err

    # Figures of another release are no baseline.
    baseline.write_text(json.dumps({**report, "triton": "0.0"}))
    assert aot.main(arguments) == 0
    assert "only errors and limits are judged" in capsys.readouterr().err


def test_update_writes_clean_figures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aot, "BASELINE", tmp_path / "baseline.json")
    found: dict[str, dict[str, aot.Figures | str]] = {"kernel": {"sm_80": aot.Figures(9, 0, 0)}}
    monkeypatch.setattr(aot, "collect", lambda *_: found)
    assert aot.main(["--update"]) == 0
    written = json.loads(aot.BASELINE.read_text())
    assert written["figures"] == {"kernel": {"sm_80": {"registers": 9, "spills": 0, "shared": 0}}}
    found["kernel"]["sm_80"] = aot.Figures(9, 4, 0)
    assert aot.main(["--update"]) == 1
    assert json.loads(aot.BASELINE.read_text()) == written
    assert aot.main(["--update", "--only", "x"]) == 2
    capsys.readouterr()


def test_quick_takes_each_kernel_at_its_costliest() -> None:
    figures = json.loads(aot.BASELINE.read_text())["figures"]
    names = aot.nearest_to_spilling(list(aot.TARGETS), figures)
    assert len(names) < len(figures) / 2
    for target in aot.TARGETS:
        most: dict[object, int] = {}
        for variant in variants(target):
            if variant.name in names:
                registers = figures[variant.name][target]["registers"]
                most[variant.code] = max(registers, most.get(variant.code, 0))
        for variant in variants(target):
            assert figures[variant.name][target]["registers"] <= most[variant.code]
    # What the baseline lacks is compiled, for there is nothing to say that it is like another.
    every = {variant.name for variant in variants("sm_90")}
    assert aot.nearest_to_spilling(["sm_90"], {}) == every


def test_complaints() -> None:
    fine = aot.Figures(40, 0, 1024)
    baseline = {
        "triton": aot.triton.__version__,
        "figures": {"a": {"sm_80": {"registers": 40, "spills": 0, "shared": 512}}},
    }
    assert aot.complaints({"a": {"sm_80": fine}}, None) == []
    (shared,) = aot.complaints({"a": {"sm_80": fine}}, baseline)
    assert "1024 bytes, was 512" in shared
    (missing,) = aot.complaints({"b": {"sm_80": fine}}, baseline)
    assert "not in the baseline" in missing
    (spill,) = aot.complaints({"a": {"sm_80": aot.Figures(255, 8, 0)}}, None)
    assert "spills 8" in spill
    (name, target), few = next(iter(aot.ACCEPTED.items()))
    assert aot.complaints({name: {target: aot.Figures(255, few, 0)}}, None) == []
    assert aot.complaints({name: {target: aot.Figures(255, few + 1, 0)}}, None)
    assert aot.complaints({name: {"sm_80": aot.Figures(255, few, 0)}}, None)
    other = baseline | {"triton": "0.1"}
    assert aot.complaints({"a": {"sm_80": aot.Figures(255, 8, 0)}}, other) == []
    (limit,) = aot.complaints({"a": {"gfx942": aot.Figures(40, 0, 65537)}}, None)
    assert "shared memory" in limit
    (broken,) = aot.complaints({"a": {"sm_80": "Error: no"}}, None)
    assert "does not compile" in broken
    assert "| error |" in aot.markdown({"a": {"sm_80": "Error: no"}}, ["sm_80", "sm_90"])


def test_a_variant_that_does_not_compile_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> aot.Figures:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(aot, "compile_variant", broken)
    table = aot.collect(["sm_80"], "^l1_ball backward, 32 columns, fp32$")
    assert table == {
        "l1_ball backward, 32 columns, fp32": {"sm_80": "RuntimeError: no such instruction"}
    }


def test_cpu_tensors_are_refused_where_kernels_are_compiled() -> None:
    with pytest.raises(ValueError, match="weight must be on a CUDA or ROCm device"):
        l1_ball.l1_ball_forward(torch.ones(2, 3))


def test_loops_are_found_in_machine_code() -> None:
    text = """
    .L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
    .L_x_1:
        /*0010*/                   LDS.128 R4, [R2] ;
        /*0020*/              @!P0 FFMA R0, R1, R2, R3 ;
        /*0030*/                   FFMA R0, R1, R2, R3 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   FADD R0, R1, R2 ;
        /*0060*/              @!P2 BRA `(.L_x_0) ;
        /*0070*/                   BRA `(.L_x_2) ;
    .L_x_2:
        /*0080*/                   EXIT ;
        /*0090*/                   NOP ;
    """
    inner = ["LDS.128", "FFMA", "FFMA", "BRA"]
    outer = ["MOV", *inner, "FADD", "BRA"]
    assert loops.read(text) == ([*outer, "BRA", "EXIT"], [inner, outer])
    assert loops.hottest([inner, outer]) == inner
    assert loops.hottest([["FADD"], ["FADD", "FADD"], ["MOV"]]) == ["FADD", "FADD"]


def test_a_product_that_projects_takes_more_instructions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "lipschitz_linear grad_x, half 64x64x64, 4 warps"
    assert loops.main([f"^{name}(, swapped, projecting)?$"]) == 0
    plain, projecting = (
        [int(cell) for cell in line.split("|")[2:-1]]
        for line in capsys.readouterr().out.splitlines()[2:]
    )
    assert plain[0] > plain[1]
    assert 2 * plain[1] < projecting[1]
    assert plain[2] == projecting[2] > 0
    assert loops.main(["no such kernel"]) == 2
    assert "no such kernel" in capsys.readouterr().err
