"""group_sort on every CPU backend, against torch.sort and brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import assert_as_accurate
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import lipvae
from lipvae import reference
from lipvae.functional import group_sort
from lipvae.ops.group_sort import code_shape

BACKENDS = ["reference", "cpp"]
# Shapes and the sorted dimension: rows that do not fill a byte of code, planes, odd inner lengths.
CASES = [
    ((8,), 0),
    ((5, 8), -1),
    ((3, 24), 1),
    ((7, 1000), -1),
    ((16, 3), 0),
    ((2, 8, 5, 7), 1),
    ((3, 16, 28, 28), 1),
    ((2, 3, 40, 1), 2),
]


@pytest.mark.parametrize("size", sorted(reference.NETWORKS))
def test_networks_sort_every_zero_one_input(size: int) -> None:
    """The 0-1 principle: a network that sorts all of them sorts everything."""
    inputs = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))
    assert torch.equal(reference.group_sort_network(inputs, size)[0], inputs.sort(-1).values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_against_torch_sort(
    backend: str, size: int, dtype: torch.dtype, shape: tuple[int, ...], dim: int
) -> None:
    x = torch.randn(shape, dtype=dtype).round(decimals=1).requires_grad_()
    with lipvae.backend(backend):
        y = group_sort(x, size, dim)
        grad = torch.randn(shape, dtype=dtype)
        (grad_x,) = torch.autograd.grad(y, x, grad) if y is not x else (grad,)
        with torch.no_grad():
            assert torch.equal(group_sort(x, size, dim), y)
    truth = reference.group_sort(x.detach().double(), size, dim)
    assert_as_accurate("group_sort", y.detach(), truth)
    # Ties leave a choice of permutation: the gradient is right iff it pairs with equal inputs.
    axis, n = dim % len(shape), shape[dim]
    pairs = [
        torch.stack([a, b], -1).movedim(axis, -2).reshape(-1, n // size, size, 2)
        for a, b in ((x.detach(), grad_x), (y.detach(), grad))
    ]
    for mine, theirs in zip(*(p.flatten(0, 1).tolist() for p in pairs), strict=True):
        assert sorted(mine) == sorted(theirs)


@pytest.mark.parametrize("size", [3, 5, 16])
def test_sizes_without_a_kernel_take_torch_sort(size: int) -> None:
    x = torch.randn(4, 240, dtype=torch.float64, requires_grad=True)
    assert torch.equal(group_sort(x, size), reference.group_sort(x, size))
    assert torch.autograd.gradcheck(lambda t: group_sort(t, size), x)
    with lipvae.backend("cpp"), pytest.raises(RuntimeError, match="no kernel for these arguments"):
        group_sort(x, size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [2, 4, 8])
def test_code_is_the_networks(backend: str, size: int) -> None:
    for shape, dim in CASES:
        x = torch.randn(shape)
        dim = dim % len(shape)
        y, code = reference.group_sort_network(x, size, dim)
        with lipvae.backend(backend):
            got_y, got = torch.ops.lipvae.group_sort(x, size, dim, True)
        assert got.shape == code_shape(x, size, dim)
        assert torch.equal(got_y, y)
        assert torch.equal(got, code)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_hand_each_element_its_own_gradient(backend: str) -> None:
    x = torch.ones(3, 8, requires_grad=True)
    grad = torch.randn(3, 8)
    for size in (2, 4, 8):
        with lipvae.backend(backend):
            (got,) = torch.autograd.grad(group_sort(x, size), x, grad)
        assert torch.equal(got.sort(-1).values, grad.sort(-1).values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [2, 4, 8])
def test_gradient(backend: str, size: int) -> None:
    x = torch.randn(3, 16, 5, dtype=torch.float64, requires_grad=True)
    with lipvae.backend(backend):
        assert torch.autograd.gradcheck(lambda t: group_sort(t, size, 1), x)
        assert torch.autograd.gradcheck(lambda t: group_sort(t.transpose(0, 1), size, 0), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_edge_cases(backend: str) -> None:
    with lipvae.backend(backend):
        assert group_sort(torch.empty(0, 4)).shape == (0, 4)
        assert group_sort(torch.empty(3, 0)).shape == (3, 0)
        x = torch.tensor([3.0, float("nan"), float("inf"), -float("inf")])
        y = group_sort(x)
        assert y[0] == 3  # a comparison with NaN never swaps
        assert y[1].isnan()
        assert y[2] == -float("inf")
        original = torch.randn(4, 6)
        kept = original.clone()
        group_sort(original)
        assert torch.equal(original, kept)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"group_size must divide .* got 2 for 5"):
        group_sort(torch.ones(3, 5))
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        group_sort(torch.ones(4), 0)
    with pytest.raises(TypeError, match="group_size must be an int"):
        group_sort(torch.ones(4), 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dim must be in \[-1, 1\), got 1"):
        group_sort(torch.ones(4), 2, 1)
    with pytest.raises(ValueError, match="at least 1 dimensions"):
        group_sort(torch.tensor(1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend: str) -> None:
    x = torch.randn(3, 8, 5, requires_grad=True)
    with lipvae.backend(backend):
        for size in (2, 4, 8):
            torch.library.opcheck(torch.ops.lipvae.group_sort.default, (x, size, 1, True))
            code = torch.ops.lipvae.group_sort(x.detach(), size, 1, True)[1]
            torch.library.opcheck(
                torch.ops.lipvae.group_sort_backward.default, (x.detach(), code, size, 1)
            )
        compiled = torch.compile(group_sort, fullgraph=True, backend="aot_eager")
        grad = torch.randn_like(x)
        out, eager = compiled(x, 4, 1), group_sort(x, 4, 1)
        assert torch.equal(out, eager)
        expected = torch.autograd.grad(eager, x, grad)[0]
        assert torch.equal(torch.autograd.grad(out, x, grad)[0], expected)


@pytest.mark.filterwarnings("ignore")  # of torch.jit, on itself
def test_tracers_see_the_operator() -> None:
    x, other = torch.randn(2, 4), torch.randn(2, 4)
    traced = torch.jit.trace(lambda t: group_sort(t, 2), x, check_trace=False)
    assert torch.equal(traced(other), group_sort(other, 2))
    graph = make_fx(lambda t: group_sort(t, 2))(x)
    assert torch.equal(graph(other), group_sort(other, 2))
    with FakeTensorMode():
        assert group_sort(torch.randn(3, 8), 4).shape == (3, 8)
