"""The kernels, argument types and configurations that are compiled ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lipvae.kernels import (
    group_sort,
    importance,
    importance_linear,
    importance_statistics,
    l1_ball,
    normal_samples,
    vmf,
)
from lipvae.kernels._densities import FAMILIES
from lipvae.kernels._lipschitz_products import KERNELS, tiles
from lipvae.kernels._tuning import Machine, Tile

_FAMILY = {"sm_80": "ampere", "sm_90": "hopper", "gfx942": "cdna"}
_KINDS = {"half": "bf16", "tf32": "fp32", "ieee": "fp32"}


@dataclass(frozen=True)
class Variant:
    """One kernel with the types of its arguments, its constants and its launch options."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 3
    # Sizes are multiples of 16, which Triton's dispatch sees and compiles for.
    divisible: bool = True

    @property
    def code(self) -> tuple[Any, ...]:
        """What tells two variants' source apart: the kernel and the constants that it branches on.

        Two variants of one code differ in types, tile and warps only.
        """
        told = ("FAMILY", "GROUP", "DIM", "CONTIGUOUS", "PROJECT")
        return (self.kernel.__name__, *(self.constants.get(name) for name in told))


def _variant(
    name: str,
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    divisible: bool = True,
) -> Variant:
    rest = dict(constants)
    warps, stages = rest.pop("num_warps"), rest.pop("num_stages", 3)
    return Variant(name, kernel, types, rest, warps, stages, divisible)


def _l1_ball() -> Iterator[Variant]:
    for cols in (32, 100, 784, 1000, 1001, 4096, 8192, 16384, 65536):
        for dtype in ("fp32", "bf16"):
            p = "*" + dtype
            config = {**l1_ball.row_config(cols), "ALIGN": l1_ball.row_alignment(cols)}
            whole = cols % 16 == 0
            forward = {
                "weight_ptr": p,
                "warm_ptr": "*fp64",
                "projected_ptr": p,
                "threshold_ptr": "*fp64",
                "radius": "fp64",
                "cols": "i32",
                "is_warm": "i32",
            }
            flags = {"PROJECT": True, "BY_THRESHOLD": False}
            name = f"l1_ball forward, {cols} columns, {dtype}"
            yield _variant(name, l1_ball.project_rows, forward, {**config, **flags}, whole)
            backward = {
                "grad_ptr": "*fp32",
                "weight_ptr": p,
                "threshold_ptr": "*fp64",
                "grad_weight_ptr": p,
                "cols": "i32",
            }
            name = f"l1_ball backward, {cols} columns, {dtype}"
            yield _variant(name, l1_ball.project_rows_backward, backward, config, whole)
    types = {"weight_ptr": "*fp32", "threshold_ptr": "*fp64", "projected_ptr": "*fp32"}
    constants = {name: l1_ball.row_config(4096)[name] for name in ("CHUNK", "num_warps")}
    constants["ALIGN"] = l1_ball.row_alignment(4096)
    name = "l1_ball by known thresholds, 4096 columns, fp32"
    yield _variant(name, l1_ball.shrink_rows, {**types, "cols": "i32"}, constants)


def _group_sort() -> Iterator[Variant]:
    for group, network in group_sort.NETWORKS.items():
        for contiguous in (True, False):
            # Last dimension, flattened: outer and inner are 1 and become constants.
            ones = {"outer": 1, "inner": 1} if contiguous else {}
            sizes = {name: "i32" for name in ("outer", "n", "inner") if name not in ones}
            constants = {
                **group_sort.tile_config(1 if contiguous else 128, 4096, group),
                **ones,
                "GROUP": group,
                "NETWORK": network,
                "CONTIGUOUS": contiguous,
            }
            where = "last" if contiguous else "inner"
            recording = {**constants, "RECORD": True}
            forward = {"x_ptr": "*fp32", "y_ptr": "*fp32", "code_ptr": "*u8", **sizes}
            backward = {"grad_ptr": "*fp32", "code_ptr": "*u8", "grad_x_ptr": "*fp32", **sizes}
            for whole, label in ((True, ""), (False, ", any size")):
                name = f"group_sort forward, g={group}, {where} dimension{label}"
                yield _variant(name, group_sort.sort_groups, forward, recording, whole)
                name = f"group_sort backward, g={group}, {where} dimension{label}"
                yield _variant(name, group_sort.unsort_groups, backward, constants, whole)


def _describe(tile: Tile, kind: str) -> str:
    order = ", swapped" if tile.swapped else ""
    return f"{kind} {tile.rows}x{tile.cols}x{tile.inner}, {tile.num_warps} warps{order}"


def _lipschitz_linear(family: str) -> Iterator[Variant]:
    sizes = {"rows": "i32", "cols": "i32", "inner": "i32"}
    for kind, dtype in _KINDS.items():
        if kind == "tf32" and family == "cdna":
            continue
        p = "*" + dtype
        precision = "tf32" if kind == "tf32" else "ieee"
        types = {
            "forward": {
                "x_ptr": p,
                "weight_ptr": p,
                "bias_ptr": p,
                "threshold_ptr": "*fp64",
                "y_ptr": p,
                "code_ptr": "*u8",
            },
            "grad_x": {
                "grad_ptr": p,
                "weight_ptr": p,
                "threshold_ptr": "*fp64",
                "grad_x_ptr": p,
            },
            "grad_weight": {
                "grad_ptr": p,
                "x_ptr": p,
                "grad_projected_ptr": "*fp32",
                "grad_bias_ptr": "*fp32",
            },
        }
        for product, pointers in types.items():
            choices = (True,) if kind == "ieee" else (False, True)
            for projecting in (False,) if product == "grad_weight" else choices:
                for tile in tiles(product, kind, family, projecting=projecting):
                    for alignment, even in _layouts(kind):
                        label = ", projecting" * projecting + _raggedness(alignment, even)
                        fixed: dict[str, Any] = {"PRECISION": precision, "EVEN": even}
                        fixed["ALIGN_COLS"] = alignment
                        if product == "grad_weight":
                            fixed |= {"BIAS": True, "ALIGN_ROWS": alignment}
                        else:
                            fixed |= {"PROJECT": projecting, "ALIGN_INNER": alignment}
                        for group, epilogue, says in _epilogues(product, even):
                            if tile not in tiles(product, kind, family, group, projecting):
                                continue
                            yield _variant(
                                f"lipschitz_linear {product}, {_describe(tile, kind)}{label}{says}",
                                KERNELS[product],
                                {**pointers, **sizes},
                                {**fixed, **epilogue, **tile.keywords()},
                            )


def _layouts(kind: str) -> tuple[tuple[int, bool], ...]:
    """Entries that divide a row, and whether the inner tile does.

    A ragged row takes masks, and one of whole 8 bytes more and shorter copies: both take registers.
    """
    entries = 8 if kind == "half" else 4
    return (entries, True), (entries, False), (entries // 2, False)


def _epilogues(product: str, even: bool) -> Iterator[tuple[int, dict[str, Any], str]]:
    """What is done with a finished tile of the layer: group size, constants and a label."""
    if product != "forward":
        yield 1, {}, ""
        return
    every = ((1, True, False), (2, True, True), (2, True, False), (2, False, True), (4, True, True))
    for group, bias, record in every if even else ((1, True, False), (8, True, True)):
        constants = {"GROUP": group, "NETWORK": group_sort.NETWORKS.get(group, ())}
        constants |= {"BIAS": bias, "RECORD": record}
        says = ", no bias" * (not bias) + ", recording" * record
        yield group, constants, f", g={group}{says}"


def _raggedness(alignment: int, even: bool) -> str:
    return "" if even else f", ragged by {alignment}"


def _importance() -> Iterator[Variant]:
    sizes = {"samples": "i32", "batch": "i32", "pixels": "i32"}
    for family, count in FAMILIES.items():
        for dtype in ("fp32", "bf16"):
            forward = {"parameters_ptr": "*" + dtype, "target_ptr": "*fp32", "out_ptr": "*fp32"}
            backward = {
                "grad_ptr": "*fp32",
                "parameters_ptr": "*" + dtype,
                "target_ptr": "*fp32",
                "grad_parameters_ptr": "*" + dtype,
            }
            if count == 256:
                kernels = (
                    importance.log_likelihood_categorical,
                    importance.log_likelihood_categorical_backward,
                )
                used = {name: sizes[name] for name in ("batch", "pixels")}
                constants: dict[str, Any] = importance.categorical_config()
            else:
                kernels = (importance.log_likelihood, importance.log_likelihood_backward)
                used = sizes
                constants = {**importance.tile_config(784), "FAMILY": family, "COUNT": count}
            for whole, label in ((True, ""), (False, ", any size")):
                name = f"importance forward, {family}, {dtype}{label}"
                yield _variant(name, kernels[0], {**forward, **used}, constants, whole)
                name = f"importance backward, {family}, {dtype}{label}"
                yield _variant(name, kernels[1], {**backward, **used}, constants, whole)


def _importance_linear(architecture: str) -> Iterator[Variant]:
    for kind, dtype in _KINDS.items():
        if kind == "tf32" and architecture == "cdna":
            continue
        p = "*" + dtype
        types = {
            "hidden_ptr": p,
            "weight_ptr": p,
            "bias_ptr": p,
            "target_ptr": "*fp32",
            "partial_ptr": "*fp32",
            "rows": "i32",
            "batch": "i32",
            "pixels": "i32",
            "inner": "i32",
        }
        common = {
            "BIAS": True,
            "PRECISION": "tf32" if kind == "tf32" else "ieee",
        }
        for family, count in FAMILIES.items():
            tile = importance_linear.tile_for(kind, count, Machine(architecture))
            keywords = tile.keywords()
            del keywords["SWAPPED"]
            kernel = importance_linear.linear_log_likelihood
            parts = importance_linear.parts_for(kind, count, Machine(architecture))
            fixed: dict[str, Any] = {"FAMILY": family, "COUNT": count, "PARTS": parts}
            if count == 256:
                kernel = importance_linear.linear_log_likelihood_categorical
                fixed = {"PIXELS": importance_linear.CATEGORICAL_PIXELS}
            for alignment, even in _layouts(kind):
                ragged = _raggedness(alignment, even)
                layout: dict[str, Any] = {"EVEN": even, "ALIGN_INNER": alignment}
                if count != 256:  # targets are float32: 784 pixels, or any number
                    layout["ALIGN_PIXELS"] = 4 if even else 1
                yield _variant(
                    f"importance_linear, {family}, {_describe(tile, kind)}{ragged}",
                    kernel,
                    types,
                    {**common, **fixed, **keywords, **layout},
                )
    yield _variant(
        "importance_linear, sum over tiles",
        importance_linear.sum_tiles,
        {"partial_ptr": "*fp32", "out_ptr": "*fp32", "rows": "i32", "tiles": "i32"},
        {"ROWS": importance_linear.SUMMED_ROWS, "num_warps": 4},
    )


def _normal_samples() -> Iterator[Variant]:
    sizes = {"samples": "i32", "batch": "i32", "dim": "i32"}
    inputs = dict.fromkeys(("loc_ptr", "log_variance_ptr", "noise_ptr", "ratio_ptr"), "*fp64")
    for dim in (10, 500):
        for dtype in ("fp32", "bf16"):
            yield _variant(
                f"normal_samples, {dim} dimensions, {dtype}",
                normal_samples.draw_normal,
                {**inputs, "z_ptr": "*" + dtype, **sizes},
                normal_samples.tile_config(dim),
                divisible=False,
            )


def _importance_statistics() -> Iterator[Variant]:
    doubles = dict.fromkeys(("ratio_ptr", "state_ptr", "statistics_ptr"), "*fp64")
    sizes = {"samples": "i32", "batch": "i32", "before": "i32"}
    for first in (True, False):
        constants = {**importance_statistics.tile_config(128), "FIRST": first}
        yield _variant(
            f"importance_statistics, {'first' if first else 'later'} samples",
            importance_statistics.add_samples,
            {"log_likelihood_ptr": "*fp32", **doubles, **sizes},
            constants,
        )


def _vmf() -> Iterator[Variant]:
    span = {"start": "i64", "total": "i64", "rows": "i32"}
    seed = {"seed_ptr": "*i64"}
    for dtype in ("fp32", "bf16", "fp64"):
        p = "*" + dtype
        wide = {"WIDE": dtype == "fp64"}
        by_sample = {"SHARED": False, "BLOCK": vmf.BLOCK, "num_warps": 4}
        for dim in (2, 3):
            types = {"loc_ptr": p, "concentration_ptr": p, **seed, "x_ptr": p, "t_ptr": "*fp64"}
            constants: dict[str, Any] = {**by_sample, **wide, "DIM": dim}
            name = f"vmf, {dim} dimensions, {dtype}"
            yield _variant(name, vmf.sample_small, {**types, **span}, constants)
        types = {"concentration_ptr": p, **seed, "t_ptr": "*fp64", **span, "dim": "i32"}
        yield _variant(f"vmf, t by rejection, {dtype}", vmf.draw_t, types, by_sample)
        for dim in (10, 50, 200, 1000, 4096, vmf.MAX_DIM):
            types = {"loc_ptr": p, **seed, "t_ptr": "*fp64", "x_ptr": p, **span, "dim": "i32"}
            constants = {**vmf.tangent_config(dim), **wide, "SHARED": False}
            name = f"vmf, {dim} dimensions, {dtype}"
            yield _variant(name, vmf.place_rows, types, constants, dim % 16 == 0)
    pointers = ("t_ptr", "concentration_ptr", "complement_ptr", "node_ptr", "weight_ptr", "out_ptr")
    types = {**dict.fromkeys(pointers, "*fp64"), "total": "i64", "rows": "i32", "dim": "i32"}
    constants = {"NODES": 24, "BLOCK": vmf.BLOCK, "num_warps": 4}
    yield _variant("vmf, derivative of the angle", vmf.angle_rows, types, constants)


@functools.cache
def variants(target: str) -> tuple[Variant, ...]:
    """What is compiled for a target."""
    family = _FAMILY[target]
    return (
        *_l1_ball(),
        *_group_sort(),
        *_lipschitz_linear(family),
        *_importance(),
        *_importance_linear(family),
        *_normal_samples(),
        *_importance_statistics(),
        *_vmf(),
    )
