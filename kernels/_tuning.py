"""Tiles for the matrix products: which ones exist, which one a shape gets.

A cost model ranks the tiles; the best is taken, which needs no measurement. The first call of a
shape compiles its kernels, so make it before a CUDA graph captures one. With
``LIPVAE_TRITON_AUTOTUNE=1`` the best few by the model are timed on the first call of a shape
(outside a capture), and the fastest is kept for the process.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from lipvae._backend import tf32_allowed

_TIMED = 4

# Families of GPUs that multiply float32 as TF32, and those whose matrix units can read both
# operands from shared memory.
TF32 = ("ampere", "hopper", "blackwell")
FROM_SHARED = ("hopper", "blackwell")

# Instructions that the projection of an entry of a tile takes in the loop of a product, by the
# machine code for an H100: `python -m lipvae.kernels.loops`.
PROJECTION_OPS = 7


@dataclass(frozen=True)
class Tile:
    """One program's share of a product [rows, inner] x [inner, cols], and how it is run.

    `swapped` computes the transposed product, so that the projected weight is the first operand:
    Hopper's matrix unit reads that one from registers, where the projection leaves it.
    """

    rows: int
    cols: int
    inner: int
    num_warps: int
    num_stages: int
    swapped: bool = False

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of a kernel launch."""
        return {
            "ROWS": self.rows,
            "COLS": self.cols,
            "INNER": self.inner,
            "SWAPPED": self.swapped,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }

    def shared_bytes(self, itemsize: int, accumulators: int = 1) -> int:
        """Shared memory of the pipelined operands, or of the epilogue's exchange if larger."""
        operands = (self.rows + self.cols * accumulators) * self.inner * itemsize
        return max(self.num_stages * operands, self.rows * self.cols * 4)


@dataclass(frozen=True)
class Machine:
    """What the cost model knows of a GPU; rates per multiprocessor, but for the memory's."""

    family: str = "hopper"
    processors: int = 132
    shared_limit: int = 232448
    half_rate: float = 7.5e12
    tf32_rate: float = 3.7e12
    float32_rate: float = 0.5e12
    issue_rate: float = 2.2e11
    cache_rate: float = 8e10
    step_overhead: float = 1e-7
    memory_rate: float = 3e12


# An A100's, by its data sheet; what it reads from the cache is taken to be the H100's.
AMPERE = Machine(
    family="ampere",
    processors=108,
    shared_limit=166912,
    half_rate=2.9e12,
    tf32_rate=1.45e12,
    float32_rate=0.18e12,
    issue_rate=1.8e11,
    memory_rate=1.6e12,
)


@functools.cache
def machine(index: int | None) -> Machine:
    """The device's family and size; the H100's where there is no device (index None)."""
    if index is None:
        return Machine()
    found = torch.cuda.get_device_properties(index)
    # Blackwell's workstation cards multiply as Ampere does.
    families = {8: "ampere", 9: "hopper", 12: "ampere"}
    family = families.get(found.major, "turing" if found.major < 8 else "blackwell")
    if torch.version.hip is not None:
        family = "cdna"
    limit = getattr(found, "shared_memory_per_block_optin", 0) or 65536
    rates = AMPERE if family == "ampere" else Machine()
    return replace(rates, family=family, processors=found.multi_processor_count, shared_limit=limit)


def _itemsize(kind: str) -> int:
    return 2 if kind == "half" else 4


def cost(
    tile: Tile, shape: tuple[int, int, int], kind: str, device: Machine, projecting: bool = False
) -> float:
    """Seconds that the model gives a product of this shape: waves x steps x time of a step.

    A step takes as long as its arithmetic or its reads from the cache, whichever is longer. What
    projects the weight's tile comes before the arithmetic, which waits for it.
    """
    rows, cols, inner = shape
    programs = math.ceil(rows / tile.rows) * math.ceil(cols / tile.cols)
    rates = {"half": device.half_rate, "tf32": device.tf32_rate, "ieee": device.float32_rate}
    rate, itemsize = rates[kind], _itemsize(kind)
    arithmetic = 2 * tile.rows * tile.cols * tile.inner / rate
    if projecting:
        arithmetic += tile.cols * tile.inner * PROJECTION_OPS / device.issue_rate
    traffic = (tile.rows + tile.cols) * tile.inner * itemsize / device.cache_rate
    steps = math.ceil(inner / tile.inner)
    waves = math.ceil(programs / device.processors)
    return waves * steps * (max(arithmetic, traffic) + device.step_overhead)


def ranked(
    tiles: Sequence[Tile],
    shape: tuple[int, int, int],
    kind: str,
    device: Machine,
    projecting: bool = False,
) -> list[Tile]:
    """The tiles that fit the device's shared memory, the cheapest by the model first."""
    fitting = [t for t in tiles if t.shared_bytes(_itemsize(kind)) <= device.shared_limit]
    return sorted(fitting, key=lambda tile: cost(tile, shape, kind, device, projecting))


def projects(
    plain: Sequence[Tile],
    projecting: Sequence[Tile],
    shape: tuple[int, int, int],
    kind: str,
    device: Machine,
) -> bool:
    """Whether a product had better project each tile of the weight than be given P(W).

    A product passes the weight once for every row of its tiles; P(W) is written and read once more.

    Args:
        plain: ranked tiles of the product alone.
        projecting: ranked tiles of the product that projects.
        shape: [rows, cols, inner] of the product, the weight being [cols, inner] or its transpose.
        kind: of the product.
        device: a GPU.
    """
    written = 2 * shape[1] * shape[2] * _itemsize(kind) / device.memory_rate
    before = written + cost(plain[0], shape, kind, device)
    return cost(projecting[0], shape, kind, device, projecting=True) < before


_measured: dict[Hashable, Tile] = {}


def autotuning() -> bool:
    """Whether tiles are timed: LIPVAE_TRITON_AUTOTUNE is set, and no graph is being captured."""
    if os.environ.get("LIPVAE_TRITON_AUTOTUNE", "0") in ("", "0"):
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def measuring() -> bool:
    """Whether a tile may be one that was timed, inside a capture too: a launch then needs a key."""
    return bool(_measured) or autotuning()


def pick(key: Hashable, candidates: Sequence[Tile], launch: Callable[[Tile], object]) -> Tile:
    """The first candidate, or with autotuning the fastest of the first four for this key.

    Args:
        key: what the choice may depend on.
        candidates: tiles, the best by the model first.
        launch: runs the kernel with one tile; its results are overwritten by the next.
    """
    if key not in _measured:
        if not autotuning():
            return candidates[0]
        times = {t: triton.testing.do_bench(lambda t=t: launch(t)) for t in candidates[:_TIMED]}
        _measured[key] = min(times, key=lambda tile: times[tile])
    return _measured[key]


def product_kind(dtype: torch.dtype, family: str) -> str:
    """'half', or how float32 is multiplied: 'tf32' where torch may and the GPU can, else 'ieee'."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if family in TF32 and tf32_allowed() else "ieee"
