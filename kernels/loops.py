"""Counts the instructions in the hottest loop of each kernel's machine code; needs no GPU.

``python -m lipvae.kernels.loops [REGEX]`` compiles the kernels whose names match for an H100 and
prints a Markdown table: the instructions of a program, those that a warp issues in one turn of the
loop that multiplies, and what of these goes to the matrix unit, multiplies and adds, and reads
shared memory. The four schedulers of a multiprocessor issue one instruction a cycle each, so these
counts bound what a kernel can reach before any was run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence

from lipvae.kernels import aot
from lipvae.kernels._aot_variants import Variant, variants
from lipvae.kernels._common import INTERPRETED

DEFAULT = (
    r"^(l1_ball forward|lipschitz_linear|importance (forward|backward), \w+, fp32|"
    r"importance_linear, [bg])"
)
_MATRIX, _MULTIPLY, _SHARED = ("HGMMA", "HMMA"), ("FFMA",), ("LDS", "LDSM")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")


def read(text: str) -> tuple[list[str], list[list[str]]]:
    """The names of a program's instructions and of each loop's, from what nvdisasm prints.

    A loop is what lies between a branch backwards and the place it goes to.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    found = []
    for line in text.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(names)
        elif instruction := _INSTRUCTION.search(line):
            words = _PREDICATE.sub("", instruction[1].strip("{} ")).split()
            names.append(words[0])
            target = _BRANCH.search(instruction[1])
            if target and target[1] in labels:
                found.append(names[labels[target[1]] :])
    return [name for name in names if name != "NOP"], found


def _count(names: Sequence[str], kinds: Sequence[str]) -> int:
    return sum(n for name, n in Counter(names).items() if name.split(".")[0] in kinds)


def hottest(found: Sequence[list[str]]) -> list[str]:
    """The loop with the most products or, without any, additions; the shortest of them."""
    products = (*_MATRIX, *_MULTIPLY)
    counted = products if any(_count(names, products) for names in found) else ("FADD",)
    return max(found, key=lambda names: (_count(names, counted), -len(names)))


def row(variant: Variant, target: str = "sm_90") -> str:
    """A variant's row of the table."""
    cubin = aot.compiled(variant, target).asm["cubin"]
    program, found = read(aot.read_cubin(cubin, "nvdisasm", "-c"))
    turn, kinds = hottest(found), (_MATRIX, _MULTIPLY, _SHARED)
    cells = (len(program), len(turn), *(_count(turn, kind) for kind in kinds))
    return f"| {variant.name} | " + " | ".join(map(str, cells)) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lipvae.kernels.loops", description=__doc__)
    parser.add_argument("only", nargs="?", default=DEFAULT, help="of the kernels' names")
    options = parser.parse_args(arguments)
    if INTERPRETED.value:
        print("unset TRITON_INTERPRET: interpreted kernels cannot be compiled", file=sys.stderr)
        return 2
    chosen = [variant for variant in variants("sm_90") if re.search(options.only, variant.name)]
    if not chosen:
        print(f"no kernel's name matches {options.only!r}", file=sys.stderr)
        return 2
    print("| kernel | program | loop | matrix | FFMA | shared loads |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for variant in chosen:
        print(row(variant), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
