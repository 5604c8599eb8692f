"""group_sort in Triton's interpreter: the reference's network, bit for bit."""

from __future__ import annotations

import pytest
import torch

from lipvae import reference
from lipvae.kernels.group_sort import NETWORKS, group_sort_backward, group_sort_forward

# Last, middle and first dimension; whole and ragged bytes; one tile and several.
CASES = [
    ((1, 8), 1),
    ((5, 16), -1),
    ((3, 24), 1),
    ((40, 40), 1),
    ((2, 1536), 1),
    ((2, 8, 3, 5), 1),
    ((2, 3, 2, 8), -1),
    ((16, 9), 0),
    ((1, 64, 41), 1),
]


def test_networks_are_the_reference_networks() -> None:
    assert NETWORKS == reference.NETWORKS


@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_against_the_reference(shape: tuple[int, ...], dim: int, group_size: int) -> None:
    for x in (
        torch.randn(shape),
        torch.randn(shape).half(),
        torch.randint(-2, 3, shape).bfloat16(),
    ):
        y, code = group_sort_forward(x, group_size, dim)
        truth, truth_code = reference.group_sort_network(x, group_size, dim)
        assert y.dtype == x.dtype
        assert torch.equal(y, truth)
        assert torch.equal(y, reference.group_sort(x, group_size, dim))
        assert code is not None
        assert torch.equal(code, truth_code)
        grad = torch.randn(shape).to(x.dtype)
        assert torch.equal(
            group_sort_backward(grad, code, group_size, dim),
            reference.group_sort_network_backward(grad, truth_code, group_size, dim),
        )


def test_without_a_record() -> None:
    x = torch.randn(3, 16)
    y, code = group_sort_forward(x, 4, record=False)
    assert code is None
    assert torch.equal(y, reference.group_sort(x, 4))


def test_ties_get_one_gradient_each() -> None:
    x = torch.zeros(2, 16)
    y, code = group_sort_forward(x, 8)
    assert torch.equal(y, x)
    assert code is not None
    assert not code.any()
    grad = torch.randn(2, 16)
    assert torch.equal(group_sort_backward(grad, code, 8), grad)


def test_extremes() -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[inf, -inf, 3.0, -0.0, 0.0, nan, 1e38, -1e38]])
    y, code = group_sort_forward(x, 4)
    truth, truth_code = reference.group_sort_network(x, 4)
    assert torch.equal(y.nan_to_num(nan=7.0), truth.nan_to_num(nan=7.0))
    assert code is not None
    assert torch.equal(code, truth_code)


def test_empty_and_strided() -> None:
    for shape in ((0, 8), (3, 0), (2, 8, 0)):
        y, code = group_sort_forward(torch.empty(shape), 4, 1)
        assert y.shape == shape
        assert code is not None
        assert group_sort_backward(torch.empty(shape), code, 4, 1).shape == shape
    x = torch.randn(6, 32)
    y, _ = group_sort_forward(x.t(), 2, 0)
    assert torch.equal(y, reference.group_sort(x.t(), 2, 0))


def test_errors_name_the_argument() -> None:
    x = torch.ones(2, 6)
    _, code = group_sort_forward(x, 2)
    assert code is not None
    with pytest.raises(ValueError, match="group_size"):
        group_sort_forward(x, 3)
    with pytest.raises(ValueError, match="group_size"):
        group_sort_forward(x, 4)
    with pytest.raises(ValueError, match="dim"):
        group_sort_forward(x, 2, 2)
    with pytest.raises(TypeError, match="x must"):
        group_sort_forward(x.long(), 2)
    with pytest.raises(TypeError, match="code"):
        group_sort_backward(x, code.int(), 2)
    with pytest.raises(ValueError, match="code"):
        group_sort_backward(x, code[:, :1], 2)
    with pytest.raises(ValueError, match=r"2\^31"):
        group_sort_forward(torch.empty(0, 2**31), 2)
