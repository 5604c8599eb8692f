"""Launches through Triton's own dispatch and compiler, by a driver that stands for an H100.

The interpreter takes kernels whose arguments no compiler would, and compiling ahead of time fixes
the arguments' types: here they follow from what a launcher passes, sizes of 1 turned into constants
and all.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("tests/gpu launch the kernels themselves", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from lipvae._alignment import aligned
from lipvae.kernels import (
    _tuning,
    aot,
    group_sort,
    importance,
    importance_linear,
    importance_statistics,
    l1_ball,
    lipschitz_linear,
    normal_samples,
    vmf,
)
from lipvae.kernels._densities import FAMILIES


class _Driver:
    """Names a GPU, and has none."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """The kernels that were launched, which compiles them and runs nothing."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **keywords)
        figures = aot.cuda_figures(kernel.asm["cubin"], kernel.metadata.shared)
        assert figures.spills == 0
        kernels.append(kernel)
        return kernel

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, module in list(sys.modules.items()):
        for check in ("check_operand", "check_doubles"):
            if name.startswith("lipvae.kernels.") and hasattr(module, check):
                monkeypatch.setattr(module, check, lambda _name, value, dim=None: aligned(value))
    driver.set_active(_Driver())
    yield kernels
    driver.set_active(None)  # the next to ask looks for one


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape).to(dtype)


def statistics(samples: int, images: int, before: int, dtype: torch.dtype) -> None:
    importance_statistics.importance_statistics(
        rand(samples, images, dtype=dtype),
        rand(samples, images, dtype=torch.float64),
        rand(images, 7, dtype=torch.float64),
        rand(7, images, dtype=torch.float64),
        before,
    )


def samples(count: int, images: int, dim: int, dtype: torch.dtype) -> None:
    sizes = (images, dim), (images, dim), (count, dim)
    normal_samples.normal_samples(*(rand(*size, dtype=torch.float64) for size in sizes), dtype)


def layer(
    rows: int,
    inner: int,
    cols: int,
    group: int | None,
    dtype: torch.dtype,
    record: bool,
    projecting: bool = True,
) -> None:
    x, weight, bias = (
        rand(rows, inner, dtype=dtype),
        rand(cols, inner, dtype=dtype),
        rand(cols, dtype=dtype),
    )
    lipschitz_linear.lipschitz_linear_forward(
        x, weight, bias if record else None, 1.0, group, record, projecting=projecting
    )
    if record:
        code = None
        if group:
            code = torch.empty(group_sort.code_shape(rows, cols, 1, group), dtype=torch.uint8)
        threshold = torch.zeros(cols, dtype=torch.float64)
        lipschitz_linear.lipschitz_linear_backward(
            rand(rows, cols, dtype=dtype), x, weight, threshold, code, group, projecting=projecting
        )


LAUNCHES: dict[str, Callable[[], Any]] = {
    "l1_ball of one column": lambda: l1_ball.l1_ball_forward(rand(3, 1), 1.0, None),
    "l1_ball, warm": lambda: l1_ball.l1_ball_forward(
        rand(3, 784), 1.0, torch.zeros(3, dtype=torch.float64)
    ),
    "l1_ball, backward": lambda: l1_ball.l1_ball_backward(
        rand(3, 5), rand(3, 5), torch.zeros(3, dtype=torch.float64)
    ),
    "group_sort of one row": lambda: group_sort.group_sort_forward(rand(1, 4), 2),
    "group_sort of eight, planes": lambda: group_sort.group_sort_forward(
        rand(1, 8, 7), 8, 1, False
    ),
    "layer, no sort": lambda: layer(1, 784, 64, None, torch.float32, True),
    "layer, one input": lambda: layer(100, 1, 20, 4, torch.float32, False),
    "layer, half": lambda: layer(128, 785, 64, 8, torch.float16, True),
    "layer, projected before": lambda: layer(128, 785, 64, 2, torch.bfloat16, True, False),
    "layer of one unit, projected before": lambda: layer(1, 1, 1, None, torch.float32, True, False),
    "importance of one of each": lambda: importance.importance_forward(rand(1, 1, 1), rand(1, 1)),
    "importance, categorical256": lambda: importance.importance_forward(
        rand(1, 1, 256), rand(1, 1), "categorical256"
    ),
    "importance, backward": lambda: importance.importance_backward(
        rand(1, 3), rand(1, 3, 10), rand(3, 5), "discretized_logistic"
    ),
    "importance_linear of one of each": lambda: importance_linear.importance_linear_forward(
        rand(1, 1, 1), rand(1, 1), None, rand(1, 1)
    ),
    "importance_linear, categorical256": lambda: importance_linear.importance_linear_forward(
        rand(1, 1, 16), rand(256, 16), None, rand(1, 1), "categorical256"
    ),
    "normal_samples of one of each": lambda: samples(1, 1, 1, torch.float32),
    "normal_samples, half": lambda: samples(130, 3, 300, torch.bfloat16),
    "importance_statistics of one of each": lambda: statistics(1, 1, 0, torch.float32),
    "importance_statistics after one": lambda: statistics(1, 1, 1, torch.float32),
    "importance_statistics, two chunks": lambda: statistics(200, 9, 3, torch.float16),
    **{
        f"vmf, {m} dimensions, float64": lambda m=m: vmf.vmf_forward(
            rand(1, m, dtype=torch.float64), torch.ones(1).double(), 1, torch.tensor([3]), 1, True
        )
        for m in (2, 3, 5)
    },
    **{
        f"vmf, {m} dimensions": lambda m=m: vmf.vmf_forward(
            rand(1, m), torch.ones(1), 1, torch.tensor([3]), 1, True
        )
        for m in (2, 3, 5)
    },
    "vmf, derivative": lambda: vmf.vmf_angle(
        torch.ones(1, 1, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        3,
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_compiles(name: str, compiled: list[Any]) -> None:
    LAUNCHES[name]()
    assert compiled


def test_a_captured_pass_runs_the_kernel_of_its_warm_up(compiled: list[Any]) -> None:
    """A captured pass has no thresholds to start from, and may compile nothing."""
    weight, threshold = rand(3, 784), torch.zeros(3, dtype=torch.float64)
    for warm in (None, threshold, threshold, None):
        l1_ball.l1_ball_forward(weight, 1.0, warm)
        l1_ball.l1_ball_threshold(weight, 1.0, warm)
    assert len(compiled) == 8
    assert len({kernel.hash for kernel in compiled}) == 2


def reductions(kernel: Any) -> list[str]:
    """The operands that a kernel reduces, with the layouts over its threads."""
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", text, re.M))
    operands = re.findall(r"^\s*\}\) : \((tensor<.*?)\) ->", text, re.M)
    return [re.sub(r"#\w+", lambda m: layouts.get(m[0], m[0]), operand) for operand in operands]


def images_of_a_batch(images: int, pixels: int) -> torch.Tensor:
    """From its first or its second on, which need not lie on 16 bytes."""
    return rand(images + 1, pixels)[images % 2 :][:images]


def log_likelihoods(images: int, pixels: int, family: str) -> None:
    count = FAMILIES[family]
    importance_linear.importance_linear_forward(
        rand(16, images, 200, dtype=torch.bfloat16),
        rand(count * pixels, 200, dtype=torch.bfloat16),
        None,
        images_of_a_batch(images, pixels),
        family,
    )


def marginal(images: int, pixels: int, family: str) -> None:
    parameters = rand(16, images, FAMILIES[family] * pixels)
    importance.importance_forward(parameters, images_of_a_batch(images, pixels), family)


SUMS: dict[str, tuple[int, Callable[[int], None]]] = {
    "importance_statistics": (1, lambda b: statistics(128, b, 0, torch.float32)),
    "importance_statistics, later": (1, lambda b: statistics(128, b, 128, torch.float32)),
    **{
        f"{name}, {family}, {pixels} pixels": (
            launches,
            lambda b, of=of, pixels=pixels, family=family: of(b, pixels, family),
        )
        for name, of, launches in (
            ("importance", marginal, 1),
            ("importance_linear", log_likelihoods, 2),
        )
        for family, pixels in (
            ("bernoulli", 41),
            ("bernoulli", 90),
            ("bernoulli", 784),
            ("categorical256", 41),
        )
    },
}


@pytest.mark.parametrize("name", SUMS)
def test_the_order_of_sums_does_not_depend_on_the_batch(name: str, compiled: list[Any]) -> None:
    launches, launch = SUMS[name]
    batches = (1, 2, 7, 8, 13, 16, 64)
    for images in batches:
        launch(images)
    assert len(compiled) == launches * len(batches)
    found = [reductions(kernel) for kernel in compiled[::launches]]
    assert found[0]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("inner", [200, 500, 250, 785])
def test_rows_of_any_length_are_copied_asynchronously(
    inner: int, dtype: torch.dtype, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tuning, "tf32_allowed", lambda: True)
    for group in (None, 2):
        layer(4096, inner, 512, group, dtype, True, projecting=False)
    layer(4096, inner, 10, None, dtype, True, projecting=False)
    importance_linear.importance_linear_forward(
        rand(128, 2, inner, dtype=dtype), rand(784, inner, dtype=dtype), None, rand(2, 784)
    )
    products = [k for k in compiled if k.name.startswith("linear_")]
    assert len(products) == 10
    for kernel in products:
        assert "cp.async.c" in kernel.asm["ptx"]
