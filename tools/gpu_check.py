"""Builds, tests and measures on a GPU machine: one JSON file and one table.

Run from the checkout's root: ``python tools/gpu_check.py [--out FOLDER]``. Needs a GPU that torch
sees, a C++ compiler and pip; says so and stops where there is none. Both files are written anew
after every step, so a run that is cut off leaves what it had; ``--only`` picks steps, for a machine
that is lent for less time than all take.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Exit status of pytest when no test is marked gpu.
NO_TESTS = 5
STEPS = ("build", "tests", "bench", "sanitizer")


def command(title: str, arguments: list[str], **variables: str) -> dict[str, object]:
    """Runs one step in the open, with more environment variables, and says how it went."""
    print(f"\n== {title}: {' '.join(arguments)}", flush=True)
    start = time.perf_counter()
    environment = {**os.environ, **variables}
    status = subprocess.run(arguments, cwd=ROOT, check=False, env=environment).returncode
    return {"step": title, "status": status, "seconds": round(time.perf_counter() - start, 1)}


def gpu() -> dict[str, str]:
    """The GPU and what drives it.

    Raises:
        SystemExit: if torch or a GPU is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            f"gpu_check: torch cannot be imported ({error}); install it first"
        ) from None
    if not torch.cuda.is_available():
        raise SystemExit(
            f"gpu_check: torch {torch.__version__} finds no GPU here; nothing was run. The GPU's "
            "driver may be older than this build of torch. For an AMD GPU, install torch's build "
            "for ROCm into .venv first."
        )
    return {
        "name": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "runtime": str(torch.version.cuda or torch.version.hip),
    }


def compute_sanitizer() -> str | None:
    """Where it is: toolkits put it beside nvcc, which need not be on the path."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=toolkit)


PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]


def sanitized_tests() -> dict[str, object]:
    """The gpu tests under compute-sanitizer, where it is installed."""
    title, sanitizer = "gpu tests under compute-sanitizer", compute_sanitizer()
    if sanitizer is None:
        print("\n== compute-sanitizer is not installed: memory checks left out")
        return {"step": title, "status": None, "seconds": 0.0}
    # Every tensor is an allocation of its own: torch's allocator puts many into one, where an
    # access beyond a tensor's end finds its neighbour. Nothing can be captured that way.
    watched = [
        sanitizer,
        "--tool",
        "memcheck",
        "--report-api-errors",
        "no",
        "--error-exitcode",
        "86",
    ]
    chosen = [*watched, *PYTEST, "-k", "not captured"]
    return command(title, chosen, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder (default: out)")
    parser.add_argument("--quick", action="store_true", help="few shapes")
    parser.add_argument(
        "--offline", action="store_true", help="build with the packages that are installed"
    )
    parser.add_argument("--op", action="append", help="the bench of this op only (repeatable)")
    parser.add_argument(
        "--only", choices=STEPS, action="append", help="this step only (repeatable; default: all)"
    )
    options = parser.parse_args()
    device = gpu()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = out / "gpu-bench.json"
    rows.unlink(missing_ok=True)
    bench = [sys.executable, "-m", "bench", "--device", "cuda", "--json", str(rows)]
    bench += ["--quick"] if options.quick else []
    bench += [word for op in options.op or () for word in ("--op", op)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "-e", f"{ROOT}[test]"]
    pip += ["--no-build-isolation", "--no-deps"] if options.offline else []
    # The sanitizer repeats the tests, so it comes last.
    run = {
        "build": lambda: command("build", pip),
        "tests": lambda: command("gpu tests", PYTEST),
        "bench": lambda: command("bench", bench),
        "sanitizer": sanitized_tests,
    }
    steps: list[dict[str, object]] = []
    for name in STEPS:
        if name not in (options.only or STEPS):
            continue
        steps.append(run[name]())
        write(out, device, steps, rows)
        if name == "build" and steps[-1]["status"] != 0:
            break
    rows.unlink(missing_ok=True)
    print(f"\nwritten: {out / 'gpu-check.json'}, {out / 'gpu-check.md'}")
    return int(any(step["status"] not in (0, None) for step in steps))


def write(out: Path, device: dict[str, str], steps: list[dict[str, object]], rows: Path) -> None:
    """Both files, of the steps so far and the rows that the bench has left."""
    measured = json.loads(rows.read_text())["rows"] if rows.exists() else []
    report = {"gpu": device, "steps": steps, "rows": measured}
    (out / "gpu-check.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "gpu-check.md").write_text(markdown(device, steps, rows if measured else None))


def markdown(device: dict[str, str], steps: list[dict[str, object]], rows: Path | None) -> str:
    """The steps, and the bench's table."""
    lines = [
        f"# {device['name']}, torch {device['torch']}, {device['runtime']}",
        "",
        "| step | result | seconds |",
        "| --- | --- | --- |",
    ]
    for step in steps:
        status = step["status"]
        known = {0: "passed", NO_TESTS: "no tests marked gpu", None: "left out: not installed"}
        result = known.get(status, f"failed with {status}")
        lines.append(f"| {step['step']} | {result} | {step['seconds']} |")
    if rows is not None:
        sys.path.insert(0, str(ROOT))
        from bench import bars, report, results

        measured = results.load([rows])
        lines += ["", "## Aims", "", bars.table(bars.judge(measured, "cuda"))]
        lines += ["", "## Every case", "", report.case_table(results.cases(measured))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
