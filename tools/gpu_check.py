"""Builds, tests and measures on a GPU machine: one JSON file and one table.

Run from the checkout's root: ``python tools/gpu_check.py [--out FOLDER]``. Needs a GPU that torch
sees, a C++ compiler and pip; says so and stops where there is none.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Exit status of pytest when no test is marked gpu.
NO_TESTS = 5


def command(title: str, arguments: list[str]) -> dict[str, object]:
    """Runs one step in the open and says how it went."""
    print(f"\n== {title}: {' '.join(arguments)}", flush=True)
    start = time.perf_counter()
    status = subprocess.run(arguments, cwd=ROOT, check=False).returncode
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
            f"gpu_check: torch {torch.__version__} finds no GPU here. Run this on a machine with "
            "an NVIDIA or AMD GPU and a build of torch for it; nothing was run."
        )
    return {
        "name": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "runtime": str(torch.version.cuda or torch.version.hip),
    }


def tests(sanitizer: str | None) -> list[dict[str, object]]:
    """The gpu tests, alone and, where it is installed, under compute-sanitizer."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]
    steps = [command("gpu tests", pytest)]
    if sanitizer is None:
        print("\n== compute-sanitizer is not installed: memory checks left out")
        return steps
    watched = [sanitizer, "--tool", "memcheck", "--error-exitcode", "86", *pytest]
    return [*steps, command("gpu tests under compute-sanitizer", watched)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder (default: out)")
    parser.add_argument("--quick", action="store_true", help="few shapes")
    options = parser.parse_args()
    device = gpu()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = out / "gpu-bench.json"
    rows.unlink(missing_ok=True)

    steps = [
        command("build", [sys.executable, "-m", "pip", "install", "-q", "-e", f"{ROOT}[test]"])
    ]
    if steps[0]["status"] == 0:
        steps += tests(shutil.which("compute-sanitizer"))
        bench = [sys.executable, "-m", "bench", "--device", "cuda", "--json", str(rows)]
        steps.append(command("bench", [*bench, "--quick"] if options.quick else bench))

    measured = json.loads(rows.read_text())["rows"] if rows.exists() else []
    report = {"gpu": device, "steps": steps, "rows": measured}
    (out / "gpu-check.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "gpu-check.md").write_text(markdown(device, steps, rows if measured else None))
    rows.unlink(missing_ok=True)
    print(f"\nwritten: {out / 'gpu-check.json'}, {out / 'gpu-check.md'}")
    return int(any(step["status"] != 0 for step in steps))


def markdown(device: dict[str, str], steps: list[dict[str, object]], rows: Path | None) -> str:
    """The steps, and the bench's table."""
    lines = [
        f"# {device['name']}, torch {device['torch']}, {device['runtime']}",
        "",
        "| step | result | seconds |",
        "| --- | --- | --- |",
    ]
    for step in steps:
        result = {0: "passed", NO_TESTS: "no tests marked gpu"}.get(
            int(str(step["status"])), f"failed with {step['status']}"
        )
        lines.append(f"| {step['step']} | {result} | {step['seconds']} |")
    if rows is not None:
        sys.path.insert(0, str(ROOT))
        from bench import report, results

        lines += ["", report.case_table(results.cases(results.load([rows])))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
