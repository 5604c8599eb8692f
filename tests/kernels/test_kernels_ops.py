"""The ops over the interpreted kernels: backend choice, autograd, opcheck, the tiles' choice."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable

import pytest
import torch

import lipvae
from lipvae import reference
from lipvae.functional import group_sort, lipschitz_linear, project_l1_ball
from lipvae.kernels import _tuning
from lipvae.kernels._lipschitz_products import tiles
from lipvae.kernels._tuning import Tile
from lipvae.kernels.importance_linear import TILES, tile_for
from lipvae.ops.importance import importance
from lipvae.ops.importance_linear import importance_linear


def test_autograd_reaches_the_kernels() -> None:
    x, weight, bias = torch.randn(5, 12), torch.randn(16, 12), torch.randn(16)
    inputs = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    grad = torch.randn(5, 16)

    def run() -> tuple[torch.Tensor, ...]:
        y = lipschitz_linear(*inputs, 1.2, 2)
        z = group_sort(y * 1.5, 4)
        w = project_l1_ball(weight, 0.7)
        loss = (z * grad).sum() + (w * w).sum()
        return (z.detach(), *torch.autograd.grad(loss, inputs))

    with lipvae.backend("triton"):
        got = run()
    with lipvae.backend("reference"):
        truth = run()
    for mine, true in zip(got, truth, strict=True):
        assert torch.allclose(mine, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", list(reference.FAMILIES))
def test_importance_reaches_the_kernels(family: str) -> None:
    count = reference.FAMILIES[family].parameters_per_dim
    hidden, weight = torch.randn(2, 3, 5), (torch.randn(count * 4, 5) / 3).requires_grad_()
    target = torch.randint(0, 256, (3, 4)) / 255
    grad = torch.randn(2, 3)
    results = []
    for backend in ("triton", "reference"):
        with lipvae.backend(backend):
            ll = importance(torch.nn.functional.linear(hidden, weight), target, family)
            (grad_weight,) = torch.autograd.grad(ll, weight, grad)
            fused = importance_linear(hidden, weight.detach(), None, target, family)
        results.append((ll.detach(), grad_weight, fused))
    for mine, true in zip(*results, strict=True):
        assert torch.allclose(mine, true, rtol=1e-4, atol=1e-4)


def test_thresholds_of_a_weight_that_was_replaced_start_nothing() -> None:
    linear = lipvae.nn.LipschitzLinear(12, 16, group_size=2)
    convolution = lipvae.nn.LipschitzConv2d(3, 16, 2, group_size=2)
    for layer, x in ((linear, torch.randn(5, 12)), (convolution, torch.randn(2, 3, 5, 5))):
        with lipvae.backend("triton"):
            layer(x)
        for rows in (32, 8):
            layer.weight = torch.nn.Parameter(torch.randn(rows, *layer.weight.shape[1:]))
            layer.bias = torch.nn.Parameter(torch.randn(rows))
            found = []
            for name in ("triton", "reference"):
                with lipvae.backend(name):
                    y = layer(x)
                    found.append((y.detach(), *torch.autograd.grad(y.square().sum(), layer.weight)))
            for mine, true in zip(*found, strict=True):
                assert torch.allclose(mine, true, rtol=1e-4, atol=1e-4)


def test_opcheck() -> None:
    x, weight = torch.randn(3, 6).requires_grad_(), torch.randn(8, 6).requires_grad_()
    with lipvae.backend("triton"):
        torch.library.opcheck(torch.ops.lipvae.l1_ball.default, (weight, 1.0, None))
        torch.library.opcheck(torch.ops.lipvae.group_sort.default, (weight, 4, 0, True))
        torch.library.opcheck(
            torch.ops.lipvae.lipschitz_linear.default, (x, weight, None, 1.0, 2, None, True)
        )
        torch.library.opcheck(
            torch.ops.lipvae.importance.default,
            (torch.randn(2, 3, 4).requires_grad_(), torch.rand(3, 4), "bernoulli"),
        )


class TestTiles:
    device = _tuning.Machine()

    @pytest.mark.parametrize("kind", ["half", "tf32", "ieee"])
    @pytest.mark.parametrize("family", ["ampere", "hopper", "cdna"])
    def test_every_group_fills_whole_bytes(self, kind: str, family: str) -> None:
        for group in (1, 2, 4, 8):
            for projecting in (False, True):
                found = tiles("forward", kind, family, group, projecting)
                assert found
                assert all(tile.cols % (8 * group) == 0 for tile in found)

    def test_the_model_prefers_what_fills_the_machine(self) -> None:
        found = tiles("forward", "half", "hopper")
        large = _tuning.ranked(found, (4096, 4096, 4096), "half", self.device)[0]
        small = _tuning.ranked(found, (16, 512, 784), "half", self.device)[0]
        assert large.rows * large.cols >= 128 * 128
        assert small.rows <= 32

    @pytest.mark.parametrize(
        ("rows", "projecting"), [(1, True), (128, True), (4096, False), (65536, False)]
    )
    def test_the_model_projects_in_the_product_for_few_rows(
        self, rows: int, projecting: bool
    ) -> None:
        shape = (rows, 4096, 4096)
        choices = [
            _tuning.ranked(
                tiles("forward", "half", "hopper", 2, choice), shape, "half", self.device, choice
            )
            for choice in (False, True)
        ]
        assert _tuning.projects(*choices, shape, "half", self.device) == projecting

    def test_tiles_that_do_not_fit_are_dropped(self) -> None:
        tight = _tuning.Machine(shared_limit=65536)
        found = _tuning.ranked(
            tiles("forward", "half", "hopper"), (4096, 4096, 4096), "half", tight
        )
        assert found
        assert all(tile.shared_bytes(2) <= 65536 for tile in found)

    def test_the_first_is_taken_unless_asked_to_measure(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_tuning, "_measured", {})
        found = tiles("forward", "half", "hopper")
        launched: list[Tile] = []
        monkeypatch.delenv("LIPVAE_TRITON_AUTOTUNE", raising=False)
        assert _tuning.pick("key", found, launched.append) == found[0]
        assert not launched

        monkeypatch.setenv("LIPVAE_TRITON_AUTOTUNE", "1")
        times = iter([3.0, 1.0, 2.0, 4.0])

        def bench(run: Callable[[], object]) -> float:
            run()
            return next(times)

        monkeypatch.setattr(_tuning.triton.testing, "do_bench", bench)
        assert _tuning.pick("key", found, launched.append) == found[1]
        assert launched == found[:4]
        # Kept for the process, without a second measurement.
        assert _tuning.pick("key", found, launched.append) == found[1]
        assert len(launched) == 4

    def test_float32_is_multiplied_as_torch_is_told(self) -> None:
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            assert _tuning.product_kind(torch.float32, "ampere") == "ieee"
            torch.set_float32_matmul_precision("high")
            assert _tuning.product_kind(torch.float32, "ampere") == "tf32"
            assert _tuning.product_kind(torch.bfloat16, "ampere") == "half"
            assert _tuning.product_kind(torch.float32, "turing") == "ieee"
            assert _tuning.product_kind(torch.float32, "cdna") == "ieee"
        finally:
            torch.set_float32_matmul_precision(before)

    def test_the_switches_of_torch_agree(self) -> None:
        """In a process of its own: torch refuses to mix the older switches with the newer ones."""
        program = (
            "import torch; from lipvae.kernels._tuning import product_kind\n"
            "for value, kind in ('tf32', 'tf32'), ('ieee', 'ieee'):\n"
            "    torch.backends.cuda.matmul.fp32_precision = value\n"
            "    assert product_kind(torch.float32, 'hopper') == kind, value\n"
        )
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            pytest.skip("this torch has the older switches only")
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_fewer_stages_where_shared_memory_is_short(self) -> None:
        whole = tile_for("half", 256, _tuning.Machine())
        assert whole == TILES["half", 256]
        tight = _tuning.Machine(shared_limit=65536)
        for (kind, count), tile in TILES.items():
            found = tile_for(kind, count, tight)
            assert (found.rows, found.cols, found.inner) == (tile.rows, tile.cols, tile.inner)
            assert found.num_stages == 1 or found.shared_bytes(2 if kind == "half" else 4) <= 65536


@pytest.mark.parametrize(
    ("major", "family"),
    [(7, "turing"), (8, "ampere"), (9, "hopper"), (10, "blackwell"), (12, "ampere")],
)
def test_what_the_cost_model_takes_a_gpu_for(
    major: int, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = types.SimpleNamespace(
        major=major, multi_processor_count=84, shared_memory_per_block_optin=101376
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    device = _tuning.machine.__wrapped__(0)
    assert (device.family, device.processors, device.shared_limit) == (family, 84, 101376)
    assert device.half_rate == (2.9e12 if family == "ampere" else 7.5e12)
    # Tiles of a product for it exist and fit.
    for group in (1, 2, 4, 8):
        choice = tiles("forward", "half", family, group)
        assert _tuning.ranked(choice, (4096, 4096, 4096), "half", device)
        assert all(tile.rows < 256 for tile in choice) == (family != "hopper" or group > 2)
