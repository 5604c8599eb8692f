"""The command line: ``python -m bench`` measures; ``report`` draws, ``check`` judges."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lipvae
from bench import bars, machine, results
from bench.harness import Skip, run_case
from bench.results import Row, factor, megabytes, seconds
from bench.settings import Settings
from lipvae._backend import cpp_module

OPS = (
    "l1_ball", "group_sort", "lipschitz_linear", "importance", "importance_linear",
    "normal_samples", "importance_statistics", "vmf", "training", "scoring", "scores",
)  # fmt: skip
OUT = Path("out")
FILES_HELP = f"runs' rows (default: {OUT}/bench-*.json)"


def print_case(rows: Sequence[Row], skipped: dict[str, str]) -> None:
    """One case as a table."""
    label = results.MeasuredCase({row["provider"]: row for row in rows}).label
    print(f"\n{rows[0]['op']}: {label}")
    print(f"  {'':34} {'median':>9} {'q10':>9} {'q90':>9} {'/ limit':>8} {'/ ours':>8}  memory")
    for row in rows:
        times = (seconds(row[name]) for name in ("median_s", "q10_s", "q90_s"))
        median, low, high = times
        print(
            f"  {row['provider']:34} {median:>9} {low:>9} {high:>9} {factor(row['to_limit']):>8} "
            f"{factor(row['to_ours']):>8}  {megabytes(row['peak_extra_bytes'])}"
        )
    for name, reason in skipped.items():
        print(f"  {name:34} left out: {reason}")


def run(settings: Settings, ops: Sequence[str], path: Path) -> tuple[list[Row], list[str]]:
    """Measures the cases of some ops; the file at `path` holds all rows after each op.

    A case that fails does not take the others with it: what failed is returned beside the rows.
    """
    shared = machine.describe(settings.device)
    rows: list[Row] = []
    skipped: list[dict[str, str]] = []
    failed: list[str] = []

    def fail(what: str, error: Exception) -> None:
        failed.append(f"{what}: {type(error).__name__}: {error}")
        print(f"\nFAILED: {failed[-1]}")

    print(", ".join(f"{key}: {value}" for key, value in shared.items()))
    for op in ops:
        try:
            for case in importlib.import_module(f"bench.bench_{op}").cases(settings):
                try:
                    measured = run_case(case, settings.budget, settings.device)
                except Exception as error:
                    fail(f"{op}, {case.variant}, {case.shape}", error)
                    continue
                found = [row | shared for row in measured]
                rows += found
                skipped += [
                    {"op": op, "variant": case.variant, "provider": name, "reason": reason}
                    for name, reason in case.skipped.items()
                ]
                print_case(found, case.skipped)
        except Skip as error:
            print(f"\n{op}: left out: {error}")
            skipped.append({"op": op, "reason": str(error)})
        except Exception as error:
            fail(op, error)
        results.save(path, rows, skipped)
    return rows, failed


def default_path(options: argparse.Namespace) -> Path:
    """out/bench-..., which a report reads; a quick run is kept apart from it."""
    parts = ["quick" if options.quick else "bench", options.device, f"{options.threads}-threads"]
    return OUT / ("-".join([*parts, *(options.op or [])]) + ".json")


def _files(given: Sequence[Path]) -> list[Path]:
    found = list(given) or sorted(OUT.glob("bench-*.json"))
    if not found:
        raise SystemExit(f"no {OUT}/bench-*.json here: run `python -m bench` first, or name files")
    return found


def _measure(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times the ops, peers and physical limits interleaved. Further commands: "
        "`python -m bench report FILE... --out docs`, `check FILE...`, `roofline`, `zeros`.",
    )
    parser.add_argument("--op", choices=OPS, action="append", help="only this op (repeatable)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="few shapes, about two minutes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--isa", help="instruction set of our C++ kernels (default: the widest)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where to write the rows (default: in out/)"
    )
    parser.add_argument("--check", action="store_true", help="list the bars, met and not met")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if options.isa is not None:
        try:
            cpp_module().set_isa(options.isa)
        except (RuntimeError, ValueError) as error:
            parser.error(f"--isa: {error}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    path = options.json or default_path(options)
    rows, failed = run(Settings(options.device, options.quick), options.op or OPS, path)
    print(f"\n{len(rows)} rows in {time.perf_counter() - start:.0f} s")
    print(f"written to {path}")
    if options.check:
        asked = options.op or OPS
        verdicts = bars.judge(rows, options.device)
        print("\n" + bars.table(v for v in verdicts if v.bar.op in asked))
    if failed:
        print("\nfailed:\n" + "\n".join(failed))
    return int(bool(failed))


def _report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help=FILES_HELP)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder (default: docs)")
    options = parser.parse_args(arguments)
    report: Any = importlib.import_module("bench.report")
    for path in report.write(results.load(_files(options.files)), options.out):
        print(path)
    return 0


def _check(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench check", description="Exits with 1 if a bar is not met."
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help=FILES_HELP)
    verdicts = bars.judge(results.load(_files(parser.parse_args(arguments).files)))
    print(bars.table(verdicts))
    return int(any(v.met is False for v in verdicts))


def _roofline(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench roofline", description="The least time of each kernel, by arithmetic."
    )
    parser.add_argument("--out", type=Path, help="write into this folder's performance.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    roofline: Any = importlib.import_module("bench.roofline")
    text = roofline.table(roofline.measure_cpu())
    print(text)
    if options.out:
        report: Any = importlib.import_module("bench.report")
        print(report.fill(options.out, report.ROOFLINE, text))
    return 0


def _zeros(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench zeros",
        description="What is zero in trained models and so left out by the C++ kernels: the share "
        "of a Lipschitz encoder's weights that is left, trained here, and of a decoder's units.",
    )
    parser.add_argument(
        "--data", default="digits", choices=lipvae.data.NAMES,
        help="trains on this set (default: digits, no download)",
    )  # fmt: skip
    parser.add_argument(
        "--model", nargs=2, action="append", default=[], metavar=("FILE", "DATA"),
        help="a trained model and the set whose test images it decodes (repeatable)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="write into this folder's performance.md")
    options = parser.parse_args(arguments)
    zeros: Any = importlib.import_module("bench.zeros")
    report: Any = importlib.import_module("bench.report")
    try:
        parts = {report.WEIGHTS: zeros.weight_table(options.data)}
        if options.model:
            parts[report.UNITS] = zeros.unit_table(options.model)
    except (ValueError, OSError, lipvae.data.DataUnavailableError) as error:
        parser.error(str(error))
    for name, text in parts.items():
        print(f"{text}\n")
        if options.out:
            print(report.fill(options.out, name, text))
    return 0


COMMANDS = {"report": _report, "check": _check, "roofline": _roofline, "zeros": _zeros}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    return _measure(arguments)


if __name__ == "__main__":
    sys.exit(main())
