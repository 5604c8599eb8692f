"""project_l1_ball on every CPU backend, against float64 truth and a convex optimality check."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import assert_as_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import lipvae
from lipvae import reference
from lipvae.functional import project_l1_ball
from lipvae.ops.l1_ball import l1_ball

BACKENDS = ["reference", "cpp"]
SHAPES = [(1, 1), (3, 5), (8, 9), (16, 33), (5, 784), (64, 257), (2, 4099)]


def rows(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    weight = torch.randn(shape, dtype=torch.float64)
    if kind == "initial":
        weight = weight / shape[1]
    elif kind == "boundary":
        weight = weight / weight.abs().sum(1, keepdim=True)
        weight[::2] *= 1 + 1e-9  # half the rows just outside, so that the gradient is defined
        weight[1::2] *= 1 - 1e-9
    elif kind == "heavy":
        weight = weight.sign() * weight.abs().pow(6)
    elif kind == "far":
        weight = weight * 1e6
    elif kind == "ties":
        weight = weight.sign() * weight.abs().round().clamp(0, 2)
    return weight.to(dtype)


KINDS = ["plain", "initial", "boundary", "heavy", "far", "ties"]


def test_threshold_solves_the_row_sum_equation() -> None:
    weight = rows("heavy", (20, 50), torch.float64)
    for radius in (0.1, 1.0, 30.0):
        tau = reference.l1_ball_threshold(weight, radius)
        for row, found in zip(weight, tau, strict=True):
            if row.abs().sum() <= radius:
                assert found == 0
                continue

            def excess(t: float, row: torch.Tensor = row, radius: float = radius) -> float:
                return float((row.abs() - t).relu().sum() - radius)

            root = brentq(excess, 0.0, float(row.abs().max()), xtol=1e-14, rtol=1e-14)
            assert float(found) == pytest.approx(root, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_point_of_the_ball_is_nearer(backend: str) -> None:
    """Variational inequality of a Euclidean projection: <w - p, q - p> <= 0 for q in the ball."""
    weight = rows("plain", (40, 30), torch.float64)
    with lipvae.backend(backend):
        projected = project_l1_ball(weight, 1.5)
    corners = torch.cat([torch.eye(30), -torch.eye(30)]).double() * 1.5
    gap = (weight - projected) @ corners.T - ((weight - projected) * projected).sum(1, keepdim=True)
    assert gap.max() <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("radius", [0.01, 1.0, 5 ** (1 / 3)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_truth(backend: str, radius: float, dtype: torch.dtype, kind: str) -> None:
    for shape in SHAPES:
        weight = rows(kind, shape, dtype)
        truth = reference.project_l1_ball(weight.double(), radius)
        with lipvae.backend(backend):
            projected, threshold = l1_ball(weight, radius)
        if dtype == torch.float32:
            same = reference.project_l1_ball(weight, radius)
            assert_as_accurate("l1_ball", projected, truth, same)
        else:  # a float64 threshold resolves no more than the largest entry's rounding
            assert (projected - truth).abs().max() <= 4 * 2**-52 * max(radius, weight.abs().max())
        assert threshold.dtype == torch.float64
        expected = reference.l1_ball_threshold(weight.double(), radius)
        torch.testing.assert_close(threshold, expected, rtol=1e-10, atol=1e-13)
        slack = radius * torch.finfo(dtype).eps
        if backend == "reference" and dtype == torch.float64:  # its threshold is itself rounded
            slack += shape[1] * torch.finfo(dtype).eps * max(radius, float(weight.abs().max()))
        for row in projected.tolist():
            assert math.fsum(map(abs, row)) <= radius + slack


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_changes_nothing(kind: str) -> None:
    weight = rows(kind, (32, 200), torch.float32)
    cold, threshold = l1_ball(weight, 1.0)
    for warm in (threshold, threshold * 0.9, threshold * 1.3 + 0.1, torch.zeros_like(threshold)):
        projected, again = l1_ball(weight, 1.0, warm)
        torch.testing.assert_close(again, threshold, rtol=1e-12, atol=0)
        assert torch.equal(projected, cold)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient(backend: str) -> None:
    weight = rows("plain", (6, 11), torch.float64)
    weight[2] *= 1e-3
    weight.requires_grad_()
    with lipvae.backend(backend):
        assert torch.autograd.gradcheck(lambda w: project_l1_ball(w, 1.2), weight)
        grad = torch.randn(6, 11, dtype=torch.float64)
        (got,) = torch.autograd.grad(project_l1_ball(weight, 1.2), weight, grad)
    torch.testing.assert_close(got, reference.project_l1_ball_backward(grad, weight, 1.2))
    (auto,) = torch.autograd.grad(reference.project_l1_ball(weight, 1.2), weight, grad)
    torch.testing.assert_close(got, auto)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backward_against_truth(backend: str, dtype: torch.dtype) -> None:
    for kind in KINDS:
        for shape in SHAPES:
            weight = rows(kind, shape, dtype).requires_grad_()
            grad = torch.randn(shape, dtype=dtype)
            with lipvae.backend(backend):
                (got,) = torch.autograd.grad(project_l1_ball(weight, 1.0), weight, grad)
            plain = weight.detach()
            truth = reference.project_l1_ball_backward(grad.double(), plain.double(), 1.0)
            same = reference.project_l1_ball_backward(grad, plain, 1.0)
            assert_as_accurate("l1_ball", got, truth, same)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.floats(1e-3, 1e4),
)
@settings(max_examples=200, deadline=None)
def test_properties(values: list[float], radius: float) -> None:
    weight = torch.tensor([values], dtype=torch.float64)
    projected = project_l1_ball(weight, radius)
    rounding = len(values) * 1e-15 * float(weight.abs().max())
    assert float(projected.abs().sum()) <= radius * (1 + 1e-15) + rounding
    assert (projected * weight >= 0).all()
    again = project_l1_ball(projected, radius)
    torch.testing.assert_close(again, projected, rtol=1e-7, atol=rounding)


@pytest.mark.parametrize("backend", BACKENDS)
def test_edge_cases(backend: str) -> None:
    with lipvae.backend(backend):
        assert project_l1_ball(torch.empty(0, 4)).shape == (0, 4)
        assert project_l1_ball(torch.empty(3, 0)).shape == (3, 0)
        zero = torch.zeros(2, 3)
        assert torch.equal(project_l1_ball(zero), zero)
        exact = torch.tensor([[0.5, -0.25, 0.25]])
        assert torch.equal(project_l1_ball(exact), exact)
        transposed = torch.randn(7, 5).T
        assert torch.equal(project_l1_ball(transposed), project_l1_ball(transposed.contiguous()))


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor, got \[1\.0\] \(list\)"):
        project_l1_ball([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"weight must be floating point, got a torch\.int64"):
        project_l1_ball(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="weight must be float32 or float64 on a CPU"):
        project_l1_ball(torch.ones(2, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="weight must have 2 dimensions"):
        project_l1_ball(torch.ones(2))
    for radius in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="radius must be positive and finite"):
            project_l1_ball(torch.ones(2, 2), radius)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend: str) -> None:
    weight = torch.randn(6, 12, requires_grad=True)
    with lipvae.backend(backend):
        torch.library.opcheck(torch.ops.lipvae.l1_ball.default, (weight, 1.0, None))
        threshold = torch.zeros(6, dtype=torch.float64)
        torch.library.opcheck(
            torch.ops.lipvae.l1_ball_backward.default,
            (torch.randn(6, 12), weight.detach(), threshold),
        )
        compiled = torch.compile(project_l1_ball, fullgraph=True, backend="aot_eager")
        eager = project_l1_ball(weight, 0.7)
        out = compiled(weight, 0.7)
        assert torch.equal(out, eager)
        grad = torch.randn(6, 12)
        expected = torch.autograd.grad(eager, weight, grad)
        assert torch.equal(torch.autograd.grad(out, weight, grad)[0], expected[0])
