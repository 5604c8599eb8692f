"""lipschitz_linear on every CPU backend."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_as_accurate

import lipvae
from lipvae import ops, reference
from lipvae._backend import cpp_availability
from lipvae.functional import lipschitz_linear
from lipvae.ops.group_sort import forward as group_sort_forward
from lipvae.ops.group_sort import rows_code_shape
from lipvae.ops.packed_lipschitz import PackedLipschitzLinear, cpp_forward
from lipvae.ops.panels import PackedLinear

BACKENDS = ["reference", "cpp"]
FEW = pytest.mark.parametrize("few", [False, True], ids=["dense", "few"])
SHAPES = [(1, 4, 8), (5, 33, 16), (128, 784, 64), (7, 9, 24)]


def problem(
    rows: int, columns: int, out: int, dtype: torch.dtype, *, few: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With `few` the projection leaves three entries of a row, which the C++ kernel lists."""
    x = torch.rand(rows, columns, dtype=dtype)
    weight = torch.randn(out, columns, dtype=dtype)
    if few:
        large = torch.rand(out, columns).argsort(1) < 3
        weight = torch.where(large, weight + 4 * weight.sign(), weight / 100)
    else:
        weight[::3] /= 10 * columns
    return (
        x.requires_grad_(),
        weight.requires_grad_(),
        torch.randn(out, dtype=dtype).requires_grad_(),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group_size", [None, 1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@FEW
def test_against_truth(
    backend: str,
    group_size: int | None,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    few: bool,
) -> None:
    inputs = problem(*shape, dtype, few=few)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    grad = torch.randn(shape[0], shape[2], dtype=dtype)
    with lipvae.backend(backend):
        got = lipschitz_linear(*inputs, 1.3, group_size)
        got_grads = torch.autograd.grad(got, inputs, grad)
        with torch.no_grad():
            assert torch.equal(lipschitz_linear(*inputs, 1.3, group_size), got)
    truth = reference.lipschitz_linear(*wide, 1.3, group_size)
    truth_grads = torch.autograd.grad(truth, wide, grad.double())
    same = reference.lipschitz_linear(*inputs, 1.3, group_size)
    same_grads = torch.autograd.grad(same, inputs, grad)
    assert_as_accurate("lipschitz_linear", got.detach(), truth.detach(), same.detach())
    for mine, true, theirs in zip(got_grads, truth_grads, same_grads, strict=True):
        assert_as_accurate("lipschitz_linear", mine, true, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradient(backend: str, with_bias: bool) -> None:
    x, weight, bias = problem(3, 5, 8, torch.float64)
    for group_size in (None, 2, 4, 8):
        with lipvae.backend(backend):

            def layer(*args: torch.Tensor, group_size: int | None = group_size) -> torch.Tensor:
                return lipschitz_linear(*args, *(() if with_bias else (None,)), 1.1, group_size)

            arguments = (x, weight, bias) if with_bias else (x, weight)
            assert torch.autograd.gradcheck(layer, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
def test_only_needed_gradients(backend: str, few: bool) -> None:
    x, weight, bias = problem(4, 200 if few else 6, 8, torch.float32, few=few)
    grad = torch.randn(4, 8)
    with lipvae.backend(backend):
        everything = torch.autograd.grad(
            lipschitz_linear(x, weight, bias, 1.0, 2), (x, weight, bias), grad
        )
        for i, kept in enumerate((x, weight, bias)):
            arguments = [t if t is kept else t.detach() for t in (x, weight, bias)]
            (alone,) = torch.autograd.grad(lipschitz_linear(*arguments, 1.0, 2), kept, grad)
            assert torch.equal(alone, everything[i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_and_empty_batch(backend: str) -> None:
    x, weight, bias = problem(12, 5, 8, torch.float32)
    with lipvae.backend(backend):
        flat = lipschitz_linear(x, weight, bias, 1.0, 2)
        assert torch.equal(
            lipschitz_linear(x.view(3, 4, 5), weight, bias, 1.0, 2), flat.view(3, 4, 8)
        )
        torch.testing.assert_close(lipschitz_linear(x[0], weight, bias, 1.0, 2), flat[0])
        assert lipschitz_linear(x[:0], weight, bias, 1.0, 2).shape == (0, 8)


CPP = pytest.mark.skipif(not cpp_availability().module, reason="lipvae._C is not built")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@CPP
@DTYPES
@pytest.mark.parametrize("group_size", [None, 2, 4, 8])
@FEW
def test_bits_depend_on_neither_batch_nor_threads(
    group_size: int | None, dtype: torch.dtype, few: bool
) -> None:
    x, weight, bias = problem(700, 301, 136, dtype, few=few)
    whole = lipschitz_linear(x, weight, bias, 1.3, group_size)
    grad = torch.randn(700, 136, dtype=dtype)
    slope = torch.autograd.grad(whole, (weight, bias), grad)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lipschitz_linear(x[order], weight, bias, 1.3, group_size), whole[order])
    for count in (1, 2, 5, 6, 7, 64, 128, 129, 300):
        got = lipschitz_linear(x[-count:], weight, bias, 1.3, group_size)
        assert torch.equal(got, whole[-count:])
    threads = torch.get_num_threads()
    try:
        for other in (1, 2, 5):
            torch.set_num_threads(other)
            again = lipschitz_linear(x, weight, bias, 1.3, group_size)
            assert torch.equal(again, whole)
            for one, two in zip(
                torch.autograd.grad(again, (weight, bias), grad), slope, strict=True
            ):
                torch.testing.assert_close(one, two)
    finally:
        torch.set_num_threads(threads)


@CPP
@DTYPES
@pytest.mark.parametrize("radius", [1e-7, 1.3, 1e4])
@pytest.mark.parametrize("columns", [1, 7, 64, 785])
def test_projects_as_l1_ball_does(columns: int, radius: float, dtype: torch.dtype) -> None:
    _, weight, bias = (t.detach() for t in problem(1, columns, 40, dtype))
    weight[5], weight[7, 0] = 0.0, -0.0
    projected, threshold = ops.l1_ball(weight, radius)
    for warm in (None, threshold, 0.5 * threshold, 3 * threshold):
        x = torch.randn(3, columns, dtype=dtype)
        code = torch.empty(rows_code_shape(3, 40, 2), dtype=torch.uint8)
        y, found, _ = cpp_forward(x, weight, bias, radius, 2, warm, code=code)
        assert torch.equal(found, threshold)
        kept = cpp_forward(torch.eye(columns, dtype=dtype), weight, None, radius, 0, warm)[0]
        assert torch.equal(kept.t(), projected)
        linear = cpp_forward(x, weight, bias, radius, 0, warm)[0]
        assert torch.equal(linear, PackedLinear(projected, bias)(x))
        ordered, swaps = group_sort_forward(linear, 2, 1, True)
        assert torch.equal(y, ordered)
        assert swaps is not None
        assert torch.equal(code, swaps)


@CPP
@DTYPES
@pytest.mark.parametrize("group_size", [0, 2, 4, 8])
@pytest.mark.parametrize("columns", [40, 256, 513, 785, 1100])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_list_of_entries_gives_the_bits_of_the_matrix(
    columns: int, group_size: int, dtype: torch.dtype, threads: int
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for rows in (0, 1, 6, 33, 128, 290):
            x, weight, bias = (t.detach() for t in problem(rows, columns, 72, dtype, few=True))
            weight[9] /= 1e4  # inside the ball: all its entries
            arguments = x, weight, bias, 1.3, group_size, None
            y, threshold, record = cpp_forward(*arguments, recording=True)
            # Of 40 columns the row inside the ball has too many.
            assert record.listed or columns == 40
            assert torch.equal(threshold, ops.l1_ball(weight, 1.3)[1])
            packed = PackedLipschitzLinear(weight, bias, 1.3, group_size or None)
            assert torch.equal(packed(x), y)
            unsorted = PackedLipschitzLinear(weight, bias, 1.3, None)(x)
            if group_size:
                code = torch.empty(rows_code_shape(rows, 72, group_size), dtype=torch.uint8)
                assert torch.equal(cpp_forward(*arguments, code=code)[0], y)
                swaps = group_sort_forward(unsorted, group_size, 1, True)[1]
                assert swaps is not None
                assert torch.equal(code, swaps)
            assert torch.equal(cpp_forward(*arguments)[0], y)
    finally:
        torch.set_num_threads(before)


@CPP
def test_gradients_by_a_list_of_entries_do_not_depend_on_the_threads() -> None:
    before = torch.get_num_threads()
    found = []
    x, weight, bias = problem(300, 400, 64, torch.float32, few=True)
    grad = torch.randn(300, 64)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = lipschitz_linear(x, weight, bias, 1.3, 2)
            found.append(torch.autograd.grad(y, (x, weight), grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@CPP
def test_gradcheck_of_a_list_of_entries() -> None:
    x, weight, bias = problem(3, 150, 24, torch.float64, few=True)
    with torch.no_grad():
        weight[5] /= 1e3
    inputs = x.detach(), weight.detach(), bias.detach()
    _, _, record = cpp_forward(*inputs, 1.3, 2, None, recording=True)
    assert record.listed
    assert torch.autograd.gradcheck(
        lambda *inputs: lipschitz_linear(*inputs, 1.3, 2), (x, weight, bias)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group_size", [None, 2, 8])
@FEW
def test_nan_and_infinity_stay_in_their_rows(
    backend: str, group_size: int | None, few: bool
) -> None:
    columns = 200 if few else 33
    x, weight, bias = (t.detach() for t in problem(9, columns, 16, torch.float32, few=few))
    with lipvae.backend(backend):
        clean = lipschitz_linear(x, weight, bias, 1.0, group_size)
        x[2, 5], x[4, 0] = torch.nan, torch.inf
        got = lipschitz_linear(x, weight, bias, 1.0, group_size)
        others = [0, 1, 3, 5, 6, 7, 8]
        if backend == "cpp":
            assert torch.equal(got[others], clean[others])
        assert got[2].isnan().all()
        assert not got[4].isfinite().all()
        weight[3, 7] = torch.nan  # the whole row of a weight is projected onto NaN
        x = torch.rand(9, columns)
        got = lipschitz_linear(x, weight, bias, 1.0, None)
        assert got[:, 3].isnan().all()
        assert got[:, 4:].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_and_no_inputs(backend: str) -> None:
    x, weight, bias = problem(12, 5, 8, torch.float32)
    with lipvae.backend(backend):
        dense = lipschitz_linear(x, weight, bias, 1.0, 2)
        strided = (t.detach().repeat_interleave(2, 0)[::2] for t in (x, weight, bias))
        torch.testing.assert_close(lipschitz_linear(*strided, 1.0, 2), dense)
        turned = lipschitz_linear(x.T.contiguous().T, weight.T.contiguous().T, bias, 1.0, 2)
        torch.testing.assert_close(turned, dense)
        nothing = lipschitz_linear(x[:, :0], weight[:, :0], bias, 1.0, None)
        assert torch.equal(nothing, bias.expand(12, 8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_lipschitz(backend: str) -> None:
    """Equation (1): no pair of inputs moves the output by more than r times their distance."""
    _, weight, bias = problem(1, 40, 16, torch.float64)
    a, b = torch.rand(2, 2000, 40, dtype=torch.float64)
    worst = (torch.rand(2000, 40).double() > 0.5).double()
    with lipvae.backend(backend), torch.no_grad():
        for left, right in ((a, b), (worst, 1 - worst), (a, a + 1e-6 * (b - 0.5))):
            moved = lipschitz_linear(left, weight, bias, 0.8, 2) - lipschitz_linear(
                right, weight, bias, 0.8, 2
            )
            ratio = moved.abs().amax(1) / (left - right).abs().amax(1)
            assert ratio.max() <= 0.8 * (1 + 1e-8)


def test_bad_arguments() -> None:
    x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    with pytest.raises(ValueError, match="x must have 3 features"):
        lipschitz_linear(torch.ones(2, 5), weight)
    with pytest.raises(ValueError, match="weight must have the dtype and device of x"):
        lipschitz_linear(x, weight.double())
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        lipschitz_linear(x, weight, torch.ones(3))
    with pytest.raises(ValueError, match="group_size must divide"):
        lipschitz_linear(x, weight, bias, 1.0, 3)
    with pytest.raises(TypeError, match="radius must be a number"):
        lipschitz_linear(x, weight, bias, "1")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_compile_and_export(backend: str) -> None:
    x, weight, bias = problem(4, 6, 8, torch.float32)
    with lipvae.backend(backend):
        for group_size, with_bias in ((0, bias), (2, bias), (4, None)):
            torch.library.opcheck(
                torch.ops.lipvae.lipschitz_linear.default,
                (x, weight, with_bias, 1.0, group_size, None, True),
            )
        compiled = torch.compile(lipschitz_linear, fullgraph=True, backend="aot_eager")
        out, eager = compiled(x, weight, bias, 1.0, 2), lipschitz_linear(x, weight, bias, 1.0, 2)
        assert torch.equal(out, eager)
        grad = torch.randn(4, 8)
        for got, expected in zip(
            torch.autograd.grad(out, (x, weight, bias), grad),
            torch.autograd.grad(eager, (x, weight, bias), grad),
            strict=True,
        ):
            assert torch.equal(got, expected)

        class Layer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("weight", weight.detach())
                self.register_buffer("bias", bias.detach())

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return lipschitz_linear(x, self.weight, self.bias, 1.0, 2)

        exported = torch.export.export(Layer(), (x.detach(),))
        assert torch.equal(exported.module()(x.detach()), eager)


def test_a_layer_that_got_a_wider_weight_starts_anew() -> None:
    """Its thresholds are of the old one."""
    torch.manual_seed(0)
    layer = lipvae.nn.LipschitzLinear(16, 8)
    x = torch.randn(3, 16)
    layer(x)
    layer.weight = torch.nn.Parameter(torch.randn(4096, 16))
    layer.bias = torch.nn.Parameter(torch.randn(4096))
    other = lipvae.nn.LipschitzLinear(16, 4096)
    other.load_state_dict(layer.state_dict())
    for _ in range(2):
        assert torch.equal(layer(x), other(x))
    assert layer.threshold.shape == (4096,)


@pytest.mark.parametrize("bias", [torch.zeros(1), torch.zeros(8).double(), torch.zeros(9)])
def test_a_bias_that_is_not_the_weights_is_refused(bias: torch.Tensor) -> None:
    layer = lipvae.nn.LipschitzLinear(16, 8)
    layer.bias = torch.nn.Parameter(bias)
    with pytest.raises(ValueError, match=r"bias must have shape \[8\]"):
        layer(torch.randn(3, 16))


def test_thresholds_of_another_dtype_are_not_read() -> None:
    layer = lipvae.nn.LipschitzLinear(16, 8)
    x = torch.randn(3, 16)
    expected = layer(x)
    state = {name: value.float() for name, value in layer.state_dict(keep_vars=True).items()}
    state["threshold"] = torch.full((8,), torch.nan)
    assert torch.equal(torch.func.functional_call(layer, state, (x,)), expected)


def test_gradients_do_not_depend_on_the_threads() -> None:
    """Rows as full as these fit a list or do not, by how they are cut: not by the threads."""
    torch.manual_seed(0)
    weight = torch.zeros(1024, 1024)
    for r in range(1024):
        count = 8 if r < 512 else 200
        weight[r, torch.randperm(1024)[:count]] = torch.randn(count).sign()
    weight += 1e-4 * torch.randn(1024, 1024)
    x, grad = torch.randn(128, 1024), torch.randn(128, 1024)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            inputs = [t.clone().requires_grad_() for t in (x, weight)]
            y = lipschitz_linear(*inputs, None, 1.0)
            found.append([y.detach(), *torch.autograd.grad(y, inputs, grad)])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_a_copy_of_a_frozen_layer_is_not_frozen() -> None:
    layer = lipvae.nn.LipschitzLinear(4, 4).eval()
    with lipvae.nn.frozen(layer), torch.no_grad():
        layer(torch.ones(1, 4))
        copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.weight.zero_()
        copied.bias.zero_()
        assert torch.equal(copied(torch.ones(1, 4)), torch.zeros(1, 4))
