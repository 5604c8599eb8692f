"""Compiles every kernel ahead of time and reports what it takes of a GPU; needs no GPU.

``python -m lipvae.kernels.aot`` compiles each kernel in each of its configurations for CUDA 8.0
(A100), CUDA 9.0 (H100) and gfx942 (MI300), prints registers, spills and shared memory as a
Markdown table, and fails if anything spills, exceeds the target's shared memory, or takes more than
the figures of ``aot_baseline.json`` beside this file. ``--update`` rewrites that file. ``--quick``
compiles of each kernel only what takes the most registers on one of the targets.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lipvae.kernels._aot_variants import Variant, variants
from lipvae.kernels._common import INTERPRETED, OPTIONS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory of one program, bytes.
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "gfx942": 65536}
BASELINE = Path(__file__).with_name("aot_baseline.json")
# What may spill, by kernel and target: bytes, and of gfx942 scalars, into lanes of vectors.
ACCEPTED = {
    ("lipschitz_linear forward, half 256x128x64, 8 warps, g=2, no bias, recording", "sm_90"): 24,
    (
        "lipschitz_linear forward, ieee 128x64x16, 8 warps, swapped, projecting, ragged by 2, "
        "g=8, recording",
        "sm_90",
    ): 8,
    **{
        (f"importance {which}, discretized_logistic, {dtype}, any size", "gfx942"): spills
        for which, spills in (("forward", 4), ("backward", 2))
        for dtype in ("fp32", "bf16")
    },
}
# Register allocation moves by a few between ptxas builds; more than this is a regression.
REGISTER_SLACK = 8


@dataclass(frozen=True)
class Figures:
    """What one compiled kernel takes: registers a thread, spilled bytes or registers, bytes."""

    registers: int
    spills: int
    shared: int


def read_cubin(cubin: bytes, tool: str, option: str) -> str:
    """What one of the tools that come with Triton prints of an NVIDIA GPU's machine code."""
    spec = importlib.util.find_spec("triton.backends.nvidia")
    if spec is None or spec.origin is None:
        raise RuntimeError("this Triton has no NVIDIA backend")
    path = Path(spec.origin).parent / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(path), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cuda_figures(cubin: bytes, shared: int) -> Figures:
    """What machine code of an NVIDIA GPU takes, with its shared memory as Triton gives it."""
    text = read_cubin(cubin, "cuobjdump", "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text!r}")
    registers, stack, local = map(int, found.groups())
    return Figures(registers, stack + local, shared)


def _hip_figures(assembly: str, shared: int) -> Figures:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly has no {name}")
        return int(found[1])

    # Scratch memory holds what spills; scalar registers spill into vector registers.
    spills = field("vgpr_spill_count") + field("sgpr_spill_count")
    spills += field("private_segment_fixed_size")
    return Figures(field("vgpr_count"), spills, shared)


def compiled(variant: Variant, target: str) -> Any:
    """One variant as Triton compiles it for one target of `TARGETS`."""
    names = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "constexpr") for name in names}
    # Tensors come 16-byte aligned from torch.
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*")
        or (
            variant.divisible
            and signature[name] == "i32"
            and not variant.kernel.params[i].do_not_specialize
        )
    }
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **OPTIONS}
    source = ASTSource(variant.kernel, signature, constexprs=variant.constants, attrs=attributes)
    return triton.compile(source, target=TARGETS[target], options=options)


def compile_variant(variant: Variant, target: str) -> Figures:
    """What one variant takes of one target of `TARGETS`."""
    kernel = compiled(variant, target)
    shared = kernel.metadata.shared
    if "cubin" in kernel.asm:
        return cuda_figures(kernel.asm["cubin"], shared)
    return _hip_figures(kernel.asm["amdgcn"], shared)


def _job(job: tuple[int, str]) -> Figures | str:
    """Figures of variant number job[0] on target job[1], or why it does not compile."""
    try:
        return compile_variant(variants(job[1])[job[0]], job[1])
    except Exception as error:  # a compiler's errors share no base class
        return f"{type(error).__name__}: {str(error)[-400:]}"


def nearest_to_spilling(targets: Sequence[str], figures: dict[str, Any]) -> set[str]:
    """Of each kernel the variant with the most registers on each target, and all that is new.

    Args:
        targets: names in `TARGETS`.
        figures: those of a baseline; a variant that it lacks is new.
    """
    chosen: dict[Any, tuple[int, str]] = {}
    new = set()
    for target in targets:
        for variant in variants(target):
            known = figures.get(variant.name, {}).get(target)
            if known is None:
                new.add(variant.name)
            else:
                key = (target, variant.code)
                found = (known["registers"], variant.name)
                chosen[key] = max(found, chosen.get(key, found))
    return new | {name for _, name in chosen.values()}


def collect(
    targets: Sequence[str],
    only: str = "",
    jobs: int = 1,
    quick: dict[str, Any] | None = None,
) -> dict[str, dict[str, Figures | str]]:
    """{variant: {target: figures or error}} of the variants whose name matches `only`.

    With the figures of a baseline as `quick`, only of those that `nearest_to_spilling` names.
    """
    near = None if quick is None else nearest_to_spilling(targets, quick)
    work = [
        (i, target)
        for target in targets
        for i, variant in enumerate(variants(target))
        if re.search(only, variant.name) and (near is None or variant.name in near)
    ]
    if jobs > 1:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            results = pool.map(_job, work, chunksize=1)
    else:
        results = [_job(job) for job in work]
    table: dict[str, dict[str, Figures | str]] = {}
    for (i, target), result in zip(work, results, strict=True):
        table.setdefault(variants(target)[i].name, {})[target] = result
    return table


def complaints(
    table: dict[str, dict[str, Figures | str]], baseline: dict[str, Any] | None
) -> list[str]:
    """What is wrong with the figures: errors, spills, limits, and regressions of the baseline.

    Figures are compared only with a baseline of the same Triton release, and what spills under
    another one, which no choice here was made for, is in the table and no error.
    """
    found = []
    comparable = baseline is not None and baseline["triton"] == triton.__version__
    known = baseline["figures"] if baseline is not None and comparable else {}
    for name, row in table.items():
        for target, figures in row.items():
            where = f"{name} on {target}"
            if isinstance(figures, str):
                found.append(f"{where} does not compile: {figures}")
                continue
            accepted = ACCEPTED.get((name, target), 0)
            if figures.spills > accepted and (comparable or baseline is None):
                found.append(f"{where} spills {figures.spills}")
            if figures.shared > SHARED_LIMIT[target]:
                found.append(f"{where} needs {figures.shared} bytes of shared memory")
            before = known.get(name, {}).get(target)
            if comparable and before is None:
                found.append(f"{where} is not in the baseline; run with --update")
            elif before is not None:
                if figures.registers > before["registers"] + REGISTER_SLACK:
                    found.append(
                        f"{where} takes {figures.registers} registers, was {before['registers']}"
                    )
                if figures.shared > before["shared"]:
                    found.append(f"{where} shares {figures.shared} bytes, was {before['shared']}")
    return found


def markdown(table: dict[str, dict[str, Figures | str]], targets: Sequence[str]) -> str:
    """The figures as a Markdown table: registers / spills / shared bytes on each target."""
    lines = [
        "| kernel | " + " | ".join(targets) + " |",
        "| --- |" + " ---: |" * len(targets),
    ]
    for name, row in table.items():
        cells = []
        for target in targets:
            figures = row.get(target)
            if isinstance(figures, Figures):
                cells.append(f"{figures.registers} / {figures.spills} / {figures.shared}")
            else:
                cells.append("-" if figures is None else "error")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lipvae.kernels.aot", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--only", default="", help="regular expression on the kernel's name")
    parser.add_argument("--quick", action="store_true", help="of each kernel the costliest variant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--update", action="store_true", help="rewrite the baseline")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = _parser().parse_args(arguments)
    if INTERPRETED.value:
        print("unset TRITON_INTERPRET: interpreted kernels cannot be compiled", file=sys.stderr)
        return 2
    if options.update and (options.target or options.only or options.quick):
        print("--update rewrites all figures: leave out --target, --only, --quick", file=sys.stderr)
        return 2
    targets = options.target or list(TARGETS)
    baseline = None
    if BASELINE.exists() and not options.update:
        baseline = json.loads(BASELINE.read_text())
    quick = (baseline or {"figures": {}})["figures"] if options.quick else None
    table = collect(targets, options.only, options.jobs, quick)
    if baseline is not None and baseline["triton"] != triton.__version__:
        print(
            f"the baseline is of Triton {baseline['triton']}, this is {triton.__version__}: "
            "only errors and limits are judged",
            file=sys.stderr,
        )
    plain = {
        name: {t: f if isinstance(f, str) else asdict(f) for t, f in row.items()}
        for name, row in table.items()
    }
    report = {"triton": triton.__version__, "figures": plain}
    text = markdown(table, targets)
    print(json.dumps(report, indent=1) if options.json else text, end="\n" if options.json else "")
    if options.markdown:
        options.markdown.write_text(text)
    problems = complaints(table, baseline)
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.update and not problems:
        BASELINE.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
