"""What each kernel must move and compute, and the time that implies on an H100 and on this CPU.

Nothing here is a measurement of a kernel: only this CPU's bandwidth and matrix rate are measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.harness import CpuTimer, quantile
from bench.results import seconds
from lipvae import reference
from lipvae.ops.importance_linear import CACHED_NUMBERS


@dataclass(frozen=True)
class Machine:
    """Rates of a machine.

    Attributes:
        name: as printed.
        bandwidth: bytes a second, reads and writes together.
        rates: operations a second by kind: "float32" (vector), and those of matrix products.
        launch: seconds from one dependent kernel to the next.
    """

    name: str
    bandwidth: float
    rates: dict[str, float]
    launch: float


# NVIDIA H100 SXM5 data sheet, dense rates. Launches as inside a CUDA graph.
H100 = Machine(
    "H100", 3.35e12, {"float32": 67e12, "tf32 GEMM": 495e12, "bfloat16 GEMM": 989e12}, 2e-6
)


@dataclass(frozen=True)
class Kernel:
    """The least work of one op at one shape.

    Attributes:
        name: op and direction.
        shape: sizes.
        bytes: to and from memory, each operand once.
        operations: additions, multiplications, comparisons.
        launches: on a GPU.
        kind: of the operations, a key of a machine's rates.
    """

    name: str
    shape: str
    bytes: float
    operations: float
    launches: int
    kind: str = "float32"

    def bound(self, machine: Machine) -> tuple[float, str] | None:
        """Seconds, and whether bytes, operations or launches set them; None without the rate."""
        rate = machine.rates.get(self.kind)
        if rate is None:
            return None
        return max(
            (self.bytes / machine.bandwidth, "bytes"),
            (self.operations / rate, "operations"),
            (self.launches * machine.launch, "launches"),
        )


# Passes of Newton's method over a row in registers or cache: a subtraction, a comparison, a masked
# sum and a count each. Initial and heavy-tailed rows settle in 6 to 12.
NEWTON_PASSES, NEWTON_OPERATIONS = 8, 4
# exp, one multiplication into a running product, a share of a logarithm, two for x l.
BERNOULLI_OPERATIONS = 14


def l1_ball(rows: int, cols: int) -> list[Kernel]:
    """Both directions of the projection."""
    n, shape = rows * cols, f"{rows} x {cols} float32"
    forward = n * (NEWTON_PASSES * NEWTON_OPERATIONS + 3)
    return [
        Kernel("l1_ball forward", shape, 8 * n + 8 * rows, forward, 1),
        Kernel("l1_ball backward", shape, 12 * n + 8 * rows, 6 * n, 1),
    ]


def group_sort(batch: int, features: int, g: int) -> list[Kernel]:
    """Both directions of GroupSort; a comparator is a minimum and a maximum, and one bit."""
    n, shape = batch * features, f"{batch} x {features} float32, g = {g}"
    comparators = len(reference.NETWORKS[g]) * n / g
    moved = 8 * n + comparators / 8
    return [
        Kernel("group_sort forward", shape, moved, 3 * comparators, 1),
        Kernel("group_sort backward", shape, moved, 2 * comparators, 1),
    ]


def layer(width: int, batch: int, size: int, kind: str) -> list[Kernel]:
    """Forward: thresholds, then one fused product, or between two kernels cuBLAS's.

    The weight is read twice; that many rows may be better off with a projected one is a choice.
    """
    n, shape = width * width, f"{width} x {width}, batch {batch}, {kind.split()[0]}"
    moved = size * (2 * n + 2 * batch * width)
    product, launches = 2 * batch * n, 3 if kind.startswith("float32") else 2
    return [Kernel("lipschitz_linear forward", shape, moved, product, launches, kind)]


def importance(k: int, b: int, d: int) -> list[Kernel]:
    """Bernoulli from logits in memory."""
    n, shape = k * b * d, f"K {k}, B {b}, D {d} float32"
    forward = 4 * (n + b * d + k * b)
    return [
        Kernel("importance forward, Bernoulli", shape, forward, BERNOULLI_OPERATIONS * n, 1),
        Kernel("importance backward, Bernoulli", shape, forward + 4 * n, 12 * n, 1),
    ]


def importance_linear(k: int, b: int, d: int, h: int, classes: int, kind: str) -> list[Kernel]:
    """The decoder's last layer and the reduction: the logits never leave the chip.

    Two launches, or two for each block of logits that a cache holds, and one that joins them.
    """
    blocks = math.ceil(k * b * d * classes / CACHED_NUMBERS)
    launches = 2 * blocks + 1 if kind.startswith("float32") else 2
    size = 2 if kind.startswith("bfloat16") else 4
    family = "Bernoulli" if classes == 1 else f"{classes} classes"
    shape = f"K {k}, B {b}, D {d}, H {h}, {kind.split()[0]}"
    moved = size * (k * b * h + classes * d * h + b * d) + 4 * k * b
    product = 2 * k * b * h * d * classes
    return [Kernel(f"importance_linear, {family}", shape, moved, product, launches, kind)]


def normal_samples(k: int, b: int, m: int) -> list[Kernel]:
    """One read of the noise and of the posteriors, one write of the samples."""
    shape, n = f"K {k}, B {b}, m {m} float32", k * b * m
    moved = 4 * n + 8 * (k * m + 2 * b * m + k * b)
    return [Kernel("normal_samples", shape, moved, 6 * n, 1)]


def importance_statistics(k: int, b: int) -> list[Kernel]:
    """One read of log-likelihoods and ratios. An exponential is some 14 operations."""
    shape, n = f"K {k}, B {b} float32", k * b
    return [Kernel("importance_statistics", shape, 12 * n + 112 * b, 26 * n, 1)]


KERNELS: Sequence[Kernel] = [
    *l1_ball(512, 784),
    *l1_ball(4096, 4096),
    *group_sort(4096, 4096, 2),
    *group_sort(4096, 4096, 8),
    *layer(1024, 128, 4, "float32 GEMM"),
    *layer(1024, 128, 4, "tf32 GEMM"),
    *layer(4096, 4096, 2, "bfloat16 GEMM"),
    *importance(128, 128, 784),
    *importance(256, 1024, 784),
    *importance_linear(128, 128, 3072, 512, 1, "float32 GEMM"),
    *importance_linear(128, 128, 3072, 512, 1, "bfloat16 GEMM"),
    *importance_linear(128, 128, 3072, 512, 256, "bfloat16 GEMM"),
    *normal_samples(128, 128, 10),
    *importance_statistics(128, 128),
]


def measure_cpu() -> Machine:
    """This CPU on the current number of torch threads, from 128 MB and from a matrix product.

    The bandwidth is the larger of a copy's and a read's: a copy may fetch what it overwrites.
    """
    timer = CpuTimer()
    source = torch.ones(1 << 25)
    target, a = torch.empty_like(source), torch.rand(1024, 1024)
    out = torch.empty_like(a)
    copy = quantile([timer(lambda: target.copy_(source), 1) for _ in range(10)], 0.2)
    read = quantile([timer(source.sum, 1) for _ in range(10)], 0.2)
    product = quantile([timer(lambda: torch.mm(a, a, out=out), 1) for _ in range(10)], 0.2)
    rate = 2 * 1024**3 / product
    # A vector unit that multiplies and adds at the matrix product's rate.
    rates = {"float32": rate, "float32 GEMM": rate}
    moved = 4 * source.numel()
    return Machine("this CPU", max(2 * moved / copy, moved / read), rates, 0.0)


def _si(value: float) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def table(cpu: Machine) -> str:
    """Markdown: work, and the implied times."""
    gpu = Machine(H100.name, H100.bandwidth, H100.rates | {"float32 GEMM": 67e12}, H100.launch)
    lines = [
        f"This CPU: {cpu.bandwidth / 1e9:.3g} GB/s to or from memory, "
        f"{cpu.rates['float32 GEMM'] / 1e9:.3g} GFLOP/s in a float32 GEMM, "
        f"{torch.get_num_threads()} thread(s).",
        "",
        "| kernel | shape | bytes | operations | launches | H100, at least | this CPU, at least |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kernel in KERNELS:
        bounds = []
        for machine in (gpu, cpu):
            found = kernel.bound(machine)
            bounds.append("" if found is None else f"{seconds(found[0])} ({found[1]})")
        lines.append(
            f"| {kernel.name} | {kernel.shape} | {_si(kernel.bytes)}B | {_si(kernel.operations)} "
            f"| {kernel.launches} | {bounds[0]} | {bounds[1]} |"
        )
    return "\n".join(lines)
