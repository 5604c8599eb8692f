"""How many kernels a layer and a scoring pass launch on a GPU, counted without one."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
import triton
from conftest import assert_as_accurate
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import lipvae
from lipvae import reference
from lipvae._importance_pass import ImportancePass, NoiseTiles
from lipvae._packed_model import PackedModel
from lipvae.kernels import lipschitz_linear


class Launches(TorchDispatchMode):
    """Counts torch's ops that would launch a kernel, and those of Triton."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Launches:
        run = triton.runtime.interpreter.InterpretedFunction.__getitem__

        def counted(function: Any, grid: Any) -> Any:
            launch = run(function, grid)

            def call(*args: Any, **keywords: Any) -> None:
                self.names[function.fn.__name__] += 1
                with _disable_current_modes():  # the interpreter's own copies
                    launch(*args, **keywords)

            return call

        self._patch.setattr(triton.runtime.interpreter.InterpretedFunction, "__getitem__", counted)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.undo()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = [r.alias_info for r in op._schema.returns if r.alias_info is not None]
        allocates = "empty" in op.__name__
        if not allocates and all(alias.is_write for alias in views):
            self.names[op.overloadpacket.__name__] += 1
        return op(*args, **(kwargs or {}))


def test_a_layer_takes_two_launches_and_a_frozen_one_takes_one() -> None:
    layer = lipvae.nn.LipschitzLinear(24, 16, group_size=2)
    x = torch.rand(5, 24)
    with torch.no_grad(), lipvae.backend("triton"):
        layer(x)  # Newton's method starts warm from here on
        with Launches() as launches:
            layer(x)
        with lipvae.nn.frozen(layer), Launches() as frozen:
            layer(x)
    assert launches.names.total() == 2, launches.names
    assert frozen.names.total() == 1, frozen.names


@pytest.mark.parametrize("projecting", [True, False])
def test_the_gradient_of_the_input_takes_one_or_two(
    projecting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = lipvae.nn.LipschitzLinear(24, 16, group_size=2).requires_grad_(False)
    monkeypatch.setattr(lipschitz_linear, "projects", lambda *_: projecting)
    x = torch.rand(5, 24, requires_grad=True)
    with lipvae.backend("triton"):
        layer(x)
        with Launches() as launches:
            y = layer(x)
            torch.autograd.grad(y, [x], y)
    expected = {"project_rows": 1, "linear_forward": 1, "unsort_groups": 1, "linear_grad_x": 1}
    assert launches.names == expected | ({} if projecting else {"shrink_rows": 1})


def test_a_layer_and_its_gradient_take_five() -> None:
    """Without a gradient of x."""
    layer = lipvae.nn.LipschitzLinear(24, 16, group_size=2)
    x = torch.rand(5, 24)
    assert layer.bias is not None
    with lipvae.backend("triton"):
        layer(x)
        with Launches() as launches:
            y = layer(x)
            torch.autograd.grad(y, [layer.weight, layer.bias], y)
    assert launches.names == {
        "project_rows": 1,
        "linear_forward": 1,
        "unsort_groups": 1,
        "linear_grad_weight": 1,
        "project_rows_backward": 1,
    }


def test_a_layer_whose_product_is_torchs_takes_three_and_six_for_its_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As float32 goes on a GPU without TF32: the other kernels stay ours."""
    module = sys.modules["lipvae.ops.lipschitz_linear"]
    monkeypatch.setattr(module, "choose", lambda *_: "reference")
    layer = lipvae.nn.LipschitzLinear(24, 16, group_size=2)
    assert layer.bias is not None
    inputs = [torch.rand(5, 24, requires_grad=True), layer.weight, layer.bias]
    with lipvae.backend("triton"):
        layer(inputs[0])
        with Launches() as forward:
            y = layer(inputs[0])
        with Launches() as backward:
            grads = torch.autograd.grad(y, inputs, y)
    assert forward.names == {"project_rows": 1, "addmm": 1, "sort_groups": 1}
    assert backward.names == {
        "unsort_groups": 1,
        "shrink_rows": 1,
        "mm": 2,
        "project_rows_backward": 1,
        "sum": 1,
    }
    wide = [value.detach().double().requires_grad_() for value in inputs]
    truth = reference.lipschitz_linear(*wide, 1.0, 2)
    truths = torch.autograd.grad(truth, wide, y.double())
    for got, true in zip((y, *grads), (truth, *truths), strict=True):
        assert_as_accurate("lipschitz_linear", got.detach(), true.detach())


@pytest.mark.parametrize("tiles", [1, 3])
def test_a_scoring_pass_adds_four_launches_a_tile_to_the_decoder(tiles: int) -> None:
    """As an accelerator runs it: samples, the head in two, and the statistics."""
    model = lipvae.LipschitzVAE((1, 8, 8), 3, "fc", (16, 16)).eval()
    x = torch.rand(4, 1, 8, 8)
    noise = NoiseTiles(128 * tiles, 0, 3)
    with torch.no_grad(), lipvae.backend("triton"):
        work = ImportancePass(model, noise, PackedModel(model))
        list(noise.on(x.device))  # drawn once for all calls
        with Launches() as launches:
            posterior = model._encode(x)
        encoder = launches.names.total()
        with Launches() as launches:
            work._block(x, 4, False)
    assert posterior.loc.shape == (4, 3)
    decoder = tiles * 4  # two linear layers with ReLU
    fixed = launches.names.total() - encoder - decoder - 4 * tiles
    assert fixed <= 3, launches.names
