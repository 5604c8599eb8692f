"""l1_ball in Triton's interpreter, against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import assert_as_accurate

from lipvae import reference
from lipvae.kernels import l1_ball
from lipvae.kernels.l1_ball import (
    l1_ball_backward,
    l1_ball_by_threshold,
    l1_ball_forward,
    l1_ball_shrink,
    l1_ball_threshold,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rows(kind: str, count: int, cols: int) -> torch.Tensor:
    weight = torch.randn(count, cols)
    if kind == "heavy":
        weight = weight / torch.randn(count, cols).abs().clamp(min=1e-4)
    elif kind == "geometric":
        weight = weight.sign() * 2.0 ** -(torch.arange(cols) % 100).float()
    elif kind == "ties":
        weight = torch.randint(-2, 3, (count, cols)).float()
    elif kind == "mixed":  # rows inside the ball, zero rows, rows just outside
        weight = weight / weight.abs().sum(1, keepdim=True)
        weight[::3] = 0
        weight[1::3] *= 1.01
    return weight


@pytest.fixture(params=[False, True], ids=["resident", "streamed"])
def streamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(l1_ball, "RESIDENT_COLS", 16)
        monkeypatch.setattr(l1_ball, "CHUNK_COLS", 32)
    return request.param


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "heavy", "geometric", "ties", "mixed"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 70)])
def test_against_truth(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = rows(kind, *shape).to(dtype)
    wide = weight.double()
    projected, threshold = l1_ball_forward(weight, 0.9)
    truth = reference.l1_ball_threshold(wide, 0.9)
    assert torch.allclose(threshold, truth, rtol=1e-14, atol=1e-14)
    assert torch.equal(threshold == 0, truth == 0)
    same = reference.project_l1_ball(weight, 0.9)
    assert_as_accurate("l1_ball", projected, reference.project_l1_ball(wide, 0.9), same)
    grad = torch.randn(shape).to(dtype)
    assert_as_accurate(
        "l1_ball",
        l1_ball_backward(grad, weight, threshold),
        reference.project_l1_ball_backward(grad.double(), wide, 0.9),
        reference.project_l1_ball_backward(grad, weight, 0.9),
    )


@pytest.mark.usefixtures("streamed")
def test_the_threshold_alone() -> None:
    weight = rows("mixed", 4, 40)
    assert torch.equal(l1_ball_threshold(weight, 0.9), l1_ball_forward(weight, 0.9)[1])


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["heavy", "ties", "mixed"])
def test_by_known_thresholds(kind: str, dtype: torch.dtype) -> None:
    weight = rows(kind, 4, 70).to(dtype)
    projected, threshold = l1_ball_by_threshold(weight, 0.9)
    assert torch.equal(threshold, l1_ball_threshold(weight, 0.9))
    assert torch.equal(l1_ball_shrink(weight, threshold), projected)
    same = reference.project_l1_ball(weight, 0.9)
    assert_as_accurate("l1_ball", projected, reference.project_l1_ball(weight.double(), 0.9), same)


@pytest.mark.parametrize("cols", [784, 4096, 20000])
def test_long_rows(cols: int) -> None:
    weight = rows("heavy", 2, cols)
    projected, threshold = l1_ball_forward(weight, 1.5)
    wide = weight.double()
    assert torch.allclose(threshold, reference.l1_ball_threshold(wide, 1.5), rtol=1e-14)
    assert_as_accurate("l1_ball", projected, reference.project_l1_ball(wide, 1.5))
    grad = torch.randn(2, cols)
    assert_as_accurate(
        "l1_ball",
        l1_ball_backward(grad, weight, threshold),
        reference.project_l1_ball_backward(grad.double(), wide, 1.5),
    )


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("radius", [1e3, 1.0, 1e-4, 1e-8, 1e-12])
def test_exact_row_sum_exceeds_the_radius_by_at_most_one_rounding(radius: float) -> None:
    weight = torch.cat([rows(kind, 2, 100) for kind in ("normal", "heavy", "ties", "geometric")])
    projected, threshold = l1_ball_forward(weight, radius)
    for row, tau in zip(projected.abs().double().tolist(), threshold.tolist(), strict=True):
        assert math.fsum(row) <= radius * (1 + 2**-23)
        if tau > 0:
            assert math.fsum(row) >= radius * (1 - 2**-22)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("radius", [1e-6, 1e-9, 1e-14])
def test_radius_far_below_the_largest_entry(radius: float) -> None:
    weight = torch.randperm(90).float().sub(45).repeat(2, 1)
    weight[1] = 7.0
    projected, _ = l1_ball_forward(weight, radius)
    truth = torch.zeros(2, 90, dtype=torch.float64)
    truth[0, weight[0].argmin()] = -radius
    truth[1] = radius / 90
    assert torch.allclose(projected.double(), truth, rtol=2.0**-23, atol=0)


@pytest.mark.usefixtures("streamed")
def test_the_start_does_not_matter() -> None:
    weight = rows("heavy", 3, 70)
    projected, threshold = l1_ball_forward(weight, 1.0)
    starts = [threshold, threshold / 9, threshold * 9, -threshold, torch.full_like(threshold, 1e30)]
    for start in starts:
        again, same = l1_ball_forward(weight, 1.0, warm=start)
        assert torch.allclose(same, threshold, rtol=1e-15)
        assert torch.allclose(again, projected, rtol=2.0**-23, atol=0)


def test_rows_inside_the_ball_pass_unchanged() -> None:
    weight = torch.tensor([[0.25, -0.25, 0.25, -0.25], [0.0, -0.0, 0.0, 0.0], [0.5, 0, 0, -0.4]])
    projected, threshold = l1_ball_forward(weight, 1.0)
    assert torch.equal(projected, weight)
    assert torch.equal(threshold, torch.zeros(3, dtype=torch.float64))
    grad = torch.randn(3, 4)
    assert torch.equal(l1_ball_backward(grad, weight, threshold), grad)


@pytest.mark.usefixtures("streamed")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_rows_end_and_spoil_no_other() -> None:
    weight = rows("normal", 3, 40)
    good = l1_ball_forward(weight[2:], 1.0)[0]
    weight[0, 3], weight[1, 5] = math.nan, math.inf
    projected = l1_ball_forward(weight, 1.0)[0]
    assert projected[0].isnan().any()
    assert projected[1].isnan().any()
    assert torch.equal(projected[2:], good)


def test_empty_and_strided() -> None:
    for shape in ((0, 5), (3, 0)):
        projected, threshold = l1_ball_forward(torch.empty(shape))
        assert projected.shape == shape
        assert torch.equal(threshold, torch.zeros(shape[0], dtype=torch.float64))
        assert l1_ball_backward(torch.empty(shape), torch.empty(shape), threshold).shape == shape
        assert l1_ball_shrink(torch.empty(shape), threshold).shape == shape
    weight = rows("normal", 12, 10)
    projected, threshold = l1_ball_forward(weight.t()[:, ::2], 1.0)
    plain, same = l1_ball_forward(weight.t()[:, ::2].contiguous(), 1.0)
    assert torch.equal(projected, plain)
    assert torch.equal(threshold, same)


def test_errors_name_the_argument() -> None:
    weight = torch.ones(2, 3)
    for radius in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius"):
            l1_ball_forward(weight, radius)
    with pytest.raises(TypeError, match="radius"):
        l1_ball_forward(weight, "1")
    with pytest.raises(TypeError, match=r"weight.*float64"):
        l1_ball_forward(weight.double())
    with pytest.raises(TypeError, match="weight"):
        l1_ball_forward([1.0])
    with pytest.raises(ValueError, match="weight"):
        l1_ball_forward(weight[0])
    with pytest.raises(TypeError, match="warm"):
        l1_ball_forward(weight, 1.0, warm=torch.zeros(2))
    with pytest.raises(ValueError, match="warm"):
        l1_ball_forward(weight, 1.0, warm=torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="grad"):
        l1_ball_backward(torch.ones(3, 2), weight, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TypeError, match="threshold"):
        l1_ball_backward(weight, weight, None)
    with pytest.raises(ValueError, match="columns"):
        l1_ball_forward(torch.empty(0, l1_ball.MAX_COLS))
    with pytest.raises(ValueError, match="weight"):
        l1_ball_shrink(weight[0], torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TypeError, match="threshold"):
        l1_ball_shrink(weight, torch.zeros(2))


@pytest.mark.parametrize("cols", [40, 700])
@pytest.mark.parametrize("radius", [0.3, 5.0])
def test_no_bit_depends_on_where_the_iteration_begins(cols: int, radius: float) -> None:
    weight = torch.randn(60, cols) * torch.logspace(-3, 3, 60).unsqueeze(1)
    cold = l1_ball_threshold(weight, radius)
    for factor in (0.0, 0.5, 0.99, 1.01, 3.0):
        assert torch.equal(l1_ball_threshold(weight, radius, cold * factor), cold)
