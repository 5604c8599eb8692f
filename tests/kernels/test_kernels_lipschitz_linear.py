"""lipschitz_linear in Triton's interpreter, against float64 truth."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_as_accurate

import lipvae
from lipvae import reference
from lipvae.kernels import lipschitz_linear
from lipvae.kernels._tuning import Tile
from lipvae.kernels.l1_ball import l1_ball_shrink
from lipvae.kernels.lipschitz_linear import lipschitz_linear_backward, lipschitz_linear_forward

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def use_tile(monkeypatch: pytest.MonkeyPatch, group_size: int | None, swapped: bool) -> None:
    """One small tile, so that small shapes have several, in either order of the operands."""
    tile = Tile(16, max(16, 8 * (group_size or 1)), 16, 4, 2, swapped=swapped)
    monkeypatch.setattr(lipschitz_linear, "_ranked", lambda *_: [tile])


def problem(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, inner, out = shape
    weight = torch.randn(out, inner)
    weight[::3] /= 10 * inner  # rows inside the ball
    return torch.randn(rows, inner).to(dtype), weight.to(dtype), torch.randn(out).to(dtype)


# Rows, inner and out, group size, dtype, order of the operands: a part of a tile and several
# tiles; inner ragged and whole.
CASES = [
    *(((1, 3, 8), g, dtype, False) for g in (None, 2, 4, 8) for dtype in DTYPES),
    ((18, 20, 24), 2, torch.float32, False),
    ((18, 20, 24), 2, torch.float16, True),
    ((18, 20, 24), 2, torch.bfloat16, False),
    ((18, 20, 24), None, torch.float32, True),
    ((9, 32, 16), 2, torch.bfloat16, True),
    ((9, 16, 40), 4, torch.float16, False),
    ((17, 9, 72), 8, torch.float32, True),
    ((5, 13, 7), None, torch.bfloat16, False),
]


@pytest.mark.parametrize("projecting", [True, False], ids=["projecting", "projected"])
@pytest.mark.parametrize(("shape", "group_size", "dtype", "swapped"), CASES, ids=str)
def test_against_truth(
    shape: tuple[int, int, int],
    group_size: int | None,
    dtype: torch.dtype,
    swapped: bool,
    projecting: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_tile(monkeypatch, group_size, swapped)
    x, weight, bias = problem(shape, dtype)
    grad = torch.randn(shape[0], shape[2]).to(dtype)
    how = {"projecting": projecting}
    y, threshold, code = lipschitz_linear_forward(x, weight, bias, 1.3, group_size, **how)
    grads = lipschitz_linear_backward(grad, x, weight, threshold, code, group_size, **how)

    # The sort is judged on its own: a near-tie may go either way by a rounding.
    unsorted = y
    if group_size is not None:
        unsorted, _, _ = lipschitz_linear_forward(x, weight, bias, 1.3, None, **how)
    wide = (x.double(), weight.double(), bias.double())
    truth = reference.lipschitz_linear(*wide, 1.3, None)
    same = reference.lipschitz_linear(x, weight, bias, 1.3, None)
    assert_as_accurate("lipschitz_linear", unsorted, truth, same)
    grad_z = grad.double()
    if group_size is not None:
        assert torch.equal(y, reference.group_sort(unsorted, group_size))
        assert code is not None
        grad_z = reference.group_sort_network_backward(grad_z, code, group_size)
    projected = reference.project_l1_ball(wide[1], 1.3)
    truths = (
        grad_z @ projected,
        reference.project_l1_ball_backward(grad_z.t() @ wide[0], wide[1], 1.3),
        grad_z.sum(0),
    )
    for got, true in zip(grads, truths, strict=True):
        assert got is not None
        assert got.dtype == dtype
        assert_as_accurate("lipschitz_linear", got, true)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_who_projects_changes_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tile(monkeypatch, 2, False)
    x, weight, bias = problem((18, 20, 24), dtype)
    weight[1] *= 1e4
    grad = torch.randn(18, 24).to(dtype)
    found = []
    for projecting in (True, False):
        y, threshold, code = lipschitz_linear_forward(
            x, weight, bias, 1e-3, 2, projecting=projecting
        )
        assert code is not None
        grads = lipschitz_linear_backward(
            grad, x, weight, threshold, code, 2, projecting=projecting
        )
        found.append((y, threshold, code, *grads))
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_the_cost_model_says_who_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = problem((6, 10, 8), torch.float32)
    asked: list[str] = []

    def projects(product: str, *_: object) -> bool:
        asked.append(product)
        return product == "forward"

    shrunk: list[torch.Tensor] = []

    def shrink(weight: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        shrunk.append(threshold)
        return l1_ball_shrink(weight, threshold)

    monkeypatch.setattr(lipschitz_linear, "projects", projects)
    monkeypatch.setattr(lipschitz_linear, "l1_ball_shrink", shrink)
    y, threshold, code = lipschitz_linear_forward(x, weight, bias, 1.0, 2)
    assert not shrunk
    lipschitz_linear_backward(y, x, weight, threshold, code, 2)
    assert asked == ["forward", "grad_x"]
    assert len(shrunk) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tiles_that_the_model_picks(dtype: torch.dtype) -> None:
    x, weight, bias = problem((9, 70, 24), dtype)
    y, threshold, code = lipschitz_linear_forward(x, weight, bias, 1.0, 2)
    truth = reference.lipschitz_linear(x.double(), weight.double(), bias.double(), 1.0, 2)
    assert_as_accurate("lipschitz_linear", y, truth)
    grad_x, _, grad_bias = lipschitz_linear_backward(
        torch.ones_like(y), x, weight, threshold, code, 2
    )
    projected = reference.project_l1_ball(weight.double())
    assert grad_x is not None
    assert grad_bias is not None
    assert_as_accurate("lipschitz_linear", grad_x, projected.sum(0).expand(9, -1).contiguous())
    assert_as_accurate("lipschitz_linear", grad_bias, torch.full((24,), 9.0).double())


def test_the_code_is_the_comparators_outcome() -> None:
    x, weight, _ = problem((3, 9, 16), torch.float32)
    unsorted, _, none = lipschitz_linear_forward(x, weight, None, 1.0, None)
    assert none is None
    for group_size in (2, 4, 8):
        y, _, code = lipschitz_linear_forward(x, weight, None, 1.0, group_size)
        truth, truth_code = reference.group_sort_network(unsorted, group_size)
        assert torch.equal(y, truth)
        assert code is not None
        assert torch.equal(code, truth_code)
    again, _, missing = lipschitz_linear_forward(x, weight, None, 1.0, 8, record=False)
    assert missing is None
    assert torch.equal(again, y)


@pytest.mark.parametrize("swapped", [False, True], ids=["straight", "swapped"])
def test_radius_far_below_the_weights(swapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tile(monkeypatch, 2, swapped)
    x, weight, bias = problem((4, 20, 16), torch.float32)
    y, _, _ = lipschitz_linear_forward(x, weight * 1e4, bias * 0, 1e-5, 2)
    truth = reference.lipschitz_linear(x.double(), weight.double() * 1e4, None, 1e-5, 2)
    assert_as_accurate("lipschitz_linear", y, truth)


def test_only_needed_gradients() -> None:
    x, weight, bias = problem((6, 10, 8), torch.float32)
    y, threshold, code = lipschitz_linear_forward(x, weight, bias, 1.0, 4)
    grad = torch.randn_like(y)
    everything = lipschitz_linear_backward(grad, x, weight, threshold, code, 4)
    for i in range(3):
        needs = (i == 0, i == 1, i == 2)
        got = lipschitz_linear_backward(grad, x, weight, threshold, code, 4, needs)
        for j, (one, full) in enumerate(zip(got, everything, strict=True)):
            assert (one is not None) == (i == j)
            if one is not None and full is not None:
                assert torch.allclose(one, full, rtol=1e-6)
    assert lipschitz_linear_backward(
        grad, x, weight, threshold, None, 4, (False, False, False)
    ) == (None, None, None)


def test_warm_start_and_strides() -> None:
    x, weight, bias = problem((6, 10, 8), torch.float32)
    y, threshold, _ = lipschitz_linear_forward(x, weight, bias, 1.0, 2)
    again, same, _ = lipschitz_linear_forward(
        x.t().contiguous().t(), weight.t().contiguous().t(), bias, 1.0, 2, warm=threshold * 2
    )
    assert torch.allclose(same, threshold, rtol=1e-15)
    assert torch.allclose(again, y, rtol=1e-6)


def test_empty_batch() -> None:
    _, weight, bias = problem((1, 10, 8), torch.float32)
    x = torch.empty(0, 10)
    y, threshold, code = lipschitz_linear_forward(x, weight, bias, 1.0, 2)
    assert y.shape == (0, 8)
    grad_x, grad_weight, grad_bias = lipschitz_linear_backward(y, x, weight, threshold, code, 2)
    assert grad_x is not None
    assert grad_x.shape == (0, 10)
    assert grad_weight is not None
    assert grad_bias is not None
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_errors_name_the_argument() -> None:
    x, weight, bias = problem((6, 10, 8), torch.float32)
    y, threshold, _ = lipschitz_linear_forward(x, weight, bias, 1.0, 2)
    with pytest.raises(ValueError, match="x must have shape"):
        lipschitz_linear_forward(x[:, 1:], weight)
    with pytest.raises(TypeError, match=r"x must be torch\.float32"):
        lipschitz_linear_forward(x.half(), weight)
    with pytest.raises(ValueError, match="bias"):
        lipschitz_linear_forward(x, weight, bias[1:])
    with pytest.raises(ValueError, match="weight"):
        lipschitz_linear_forward(x[:, :0], weight[:, :0])
    with pytest.raises(ValueError, match="group_size"):
        lipschitz_linear_forward(x, weight, bias, 1.0, 3)
    with pytest.raises(ValueError, match="group_size"):
        lipschitz_linear_forward(x, weight[:6], None, 1.0, 4)
    with pytest.raises(ValueError, match="radius"):
        lipschitz_linear_forward(x, weight, bias, 0.0)
    with pytest.raises(ValueError, match="code"):
        lipschitz_linear_backward(y, x, weight, threshold, None, 2)
    with pytest.raises(ValueError, match="grad_y"):
        lipschitz_linear_backward(y[:1], x, weight, threshold, None)
    with pytest.raises(ValueError, match="projected"):
        lipschitz_linear_forward(
            x, weight, threshold=threshold, projected=weight[1:], projecting=False
        )


@pytest.mark.parametrize("projecting", [True, False], ids=["projecting", "projected"])
@pytest.mark.parametrize("group_size", [None, 2, 8])
def test_frozen_layers_find_no_thresholds(
    group_size: int | None, projecting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lipschitz_linear, "projects", lambda *_: projecting)
    layer = lipvae.nn.LipschitzLinear(20, 24, group_size=group_size)
    with torch.no_grad():
        layer.weight.mul_(30).add_(torch.randn_like(layer.weight))
    x = torch.rand(2, 5, 20)
    with torch.no_grad(), lipvae.backend("triton"):
        plain = layer(x)
        with lipvae.nn.frozen(layer):
            for name in ("l1_ball_threshold", "l1_ball_by_threshold", "l1_ball_shrink"):
                monkeypatch.setattr(lipschitz_linear, name, None)
            assert torch.equal(layer(x), plain)
