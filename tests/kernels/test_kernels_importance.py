"""importance and importance_linear in Triton's interpreter, against float64 truth."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_as_accurate

from lipvae import reference
from lipvae.kernels import importance_linear
from lipvae.kernels._tuning import Tile
from lipvae.kernels.importance import importance_backward, importance_forward
from lipvae.kernels.importance_linear import importance_linear_forward

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
COUNTS = {
    "bernoulli": 1,
    "continuous_bernoulli": 1,
    "gaussian": 2,
    "discretized_logistic": 2,
    "categorical256": 256,
}
SMALL = {"categorical256": [(1, 1, 1), (2, 3, 35)]}
SHAPES = [(1, 1, 1), (9, 2, 37), (3, 1, 300)]


def problem(
    family: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    k, b, d = shape
    count = COUNTS[family]
    parameters = torch.randn(k, b, count, d) * (4 if count != 2 else 1)
    if count == 2:
        parameters[:, :, 1] -= 2
    target = torch.randint(0, 256, (b, d)) / 255
    target[:, : d // 4] = 0
    target[:, d // 4 : d // 2] = 1
    return parameters.reshape(k, b, count * d).to(dtype), target


def gradient(
    parameters: torch.Tensor, target: torch.Tensor, family: str, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = parameters.double().requires_grad_()
    truth = reference.importance(wide, target.double(), family)
    return truth.detach(), torch.autograd.grad(truth, wide, grad.double())[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("family", COUNTS)
def test_against_truth(family: str, index: int, dtype: torch.dtype) -> None:
    shapes = SMALL.get(family, SHAPES)
    parameters, target = problem(family, shapes[index % len(shapes)], dtype)
    grad = torch.rand(parameters.shape[:2])
    truth, truth_grad = gradient(parameters, target, family, grad)
    got = importance_forward(parameters, target, family)
    assert got.dtype == torch.float32
    assert_as_accurate("importance", got, truth)
    got_grad = importance_backward(grad, parameters, target, family)
    assert got_grad.dtype == dtype
    assert_as_accurate("importance", got_grad, truth_grad)


@pytest.mark.parametrize("family", ["bernoulli", "continuous_bernoulli"])
def test_every_logit_alone(family: str) -> None:
    """Each term is right relative to itself, from a logit of 1e-6 to one of 1e4."""
    size = torch.cat([torch.logspace(-6, 4, 41), torch.linspace(0.9, 1.1, 11)])
    logit = torch.cat([size, -size, torch.zeros(1)]).view(-1, 1, 1)
    grad = torch.ones(len(logit), 1)
    for pixel in (0.0, 0.3, 1.0):
        target = torch.full((1, 1), pixel)
        truth, truth_grad = gradient(logit, target, family, grad)
        got = importance_forward(logit, target, family)
        assert torch.allclose(got.double(), truth, rtol=2e-6, atol=1e-7)
        got_grad = importance_backward(grad, logit, target, family)
        assert torch.allclose(got_grad.double(), truth_grad, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("family", ["gaussian", "discretized_logistic"])
def test_every_scale_alone(family: str) -> None:
    scale = torch.linspace(-9, 9, 37)
    parameters = torch.stack([torch.full_like(scale, 0.37), scale], 1).unsqueeze(1)
    grad = torch.ones(len(scale), 1)
    for level in (0, 1, 94, 200, 255):
        target = torch.full((1, 1), level / 255)
        truth, truth_grad = gradient(parameters, target, family, grad)
        got = importance_forward(parameters, target, family)
        assert torch.allclose(got.double(), truth, rtol=5e-6, atol=5e-6)
        got_grad = importance_backward(grad, parameters, target, family)
        scale_of = truth_grad.abs().amax(-1, keepdim=True)
        assert ((got_grad - truth_grad).abs() <= 1e-5 * scale_of + 1e-6).all()


@pytest.mark.parametrize("family", ["bernoulli", "categorical256"])
def test_spread_over_samples_survives_large_sums(family: str) -> None:
    """What the hole indicator needs: a sum near -1e4 keeps its last digits."""
    d = 2000 if family == "bernoulli" else 40
    count = COUNTS[family]
    parameters = torch.randn(4, 1, count * d) * (10 if family == "bernoulli" else 100)
    target = (torch.randint(0, 256, (1, d)) / 255).round(decimals=6)
    truth = reference.importance(parameters.double(), target.double(), family)
    assert truth.abs().max() > 5e3
    got = importance_forward(parameters, target, family)
    assert ((got - truth) / truth).abs().max() <= 1e-6


@pytest.mark.parametrize("family", COUNTS)
def test_bits_depend_on_the_row_alone(family: str) -> None:
    # Of the product NumPy lets the last bits depend on the row's place: tests/gpu asks for them.
    parameters, target = problem(family, (3, 4, 20), torch.float32)
    whole = importance_forward(parameters, target, family)
    hidden = torch.randn(3, 4, 6)
    weight = torch.randn(COUNTS[family] * 20, 6)
    fused = importance_linear_forward(hidden, weight, None, target, family)
    for i in range(4):
        part = slice(i, i + 1)
        one = importance_forward(parameters[1:2, part], target[part], family)
        assert torch.equal(one, whole[1:2, part])
        one = importance_linear_forward(hidden[1:2, part], weight, None, target[part], family)
        assert torch.allclose(one, fused[1:2, part], rtol=2e-6)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles small enough for small shapes to have several."""
    for key in importance_linear.TILES:
        tile = Tile(16, 256 if key[1] == 256 else 16, 16, 4, 2)
        monkeypatch.setitem(importance_linear.TILES, key, tile)
    monkeypatch.setattr(importance_linear, "CATEGORICAL_PIXELS", 4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("with_bias", "parts"), [(True, 4), (False, 4), (True, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", COUNTS)
def test_fused_against_truth(
    family: str,
    dtype: torch.dtype,
    with_bias: bool,
    parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importance_linear, "parts_for", lambda *_: parts)
    k, b, h, d = (3, 2, 20, 6) if family == "categorical256" else (9, 3, 20, 37)
    count = COUNTS[family]
    hidden = torch.randn(k, b, h).to(dtype)
    weight = (torch.randn(count * d, h) / 4).to(dtype)
    bias = torch.randn(count * d).to(dtype) if with_bias else None
    target = torch.randint(0, 256, (b, d)) / 255
    got = importance_linear_forward(hidden, weight, bias, target, family)
    parameters = hidden.double() @ weight.double().t()
    if bias is not None:
        parameters += bias.double()
    truth = reference.importance(parameters, target.double(), family)
    same = None
    if dtype == torch.float32:
        narrow = torch.nn.functional.linear(hidden, weight, bias)
        same = reference.importance(narrow, target, family)
    assert got.dtype == torch.float32
    assert_as_accurate("importance_linear", got, truth, same)


def test_fused_with_the_tiles_of_the_gpu() -> None:
    hidden, target = torch.randn(3, 2, 70), torch.rand(2, 11)
    for family in ("bernoulli", "gaussian"):
        weight = torch.randn(COUNTS[family] * 11, 70) / 8
        got = importance_linear_forward(hidden, weight, None, target, family)
        truth = reference.importance(hidden.double() @ weight.double().t(), target.double(), family)
        assert_as_accurate("importance_linear", got, truth)


def test_huge_logits_fused() -> None:
    hidden = torch.ones(2, 1, 16) * torch.tensor([1.0, -1.0]).view(2, 1, 1)
    weight = torch.full((3, 16), 1e4 / 16)
    target = torch.tensor([[1.0, 0.0, 0.5]])
    got = importance_linear_forward(hidden, weight, None, target, "bernoulli")
    assert torch.equal(got, torch.tensor([[-15000.0], [-15000.0]]))


def test_empty_and_strided() -> None:
    for k, b, d in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        parameters, target = torch.empty(k, b, d), torch.empty(b, d)
        out = importance_forward(parameters, target)
        assert torch.equal(out, torch.zeros(k, b))
        assert importance_backward(out, parameters, target).shape == parameters.shape
    assert importance_linear_forward(
        torch.empty(0, 2, 4), torch.empty(3, 4), None, torch.empty(2, 3)
    ).shape == (0, 2)
    parameters, target = problem("bernoulli", (3, 4, 10), torch.float32)
    swapped = parameters.transpose(0, 1).contiguous().transpose(0, 1)
    strided = target.t().contiguous().t()
    assert torch.equal(importance_forward(swapped, strided), importance_forward(parameters, target))


def test_errors_name_the_argument() -> None:
    parameters, target = torch.zeros(2, 3, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="family"):
        importance_forward(parameters, target, "poisson")
    with pytest.raises(ValueError, match="target"):
        importance_forward(parameters, target[1:])
    with pytest.raises(ValueError, match="parameters"):
        importance_forward(parameters[..., 1:], target, "gaussian")
    with pytest.raises(ValueError, match="rows, got 65536 x 32768"):
        importance_forward(torch.empty(2**16, 2**15, 0), torch.empty(2**15, 0))
    with pytest.raises(TypeError, match="parameters"):
        importance_forward(parameters.double(), target)
    with pytest.raises(TypeError, match="grad"):
        importance_backward(torch.zeros(2, 3).double(), parameters, target)
    hidden, weight = torch.zeros(2, 3, 5), torch.zeros(4, 5)
    with pytest.raises(ValueError, match="weight"):
        importance_linear_forward(hidden, weight[1:], None, target)
    with pytest.raises(ValueError, match="bias"):
        importance_linear_forward(hidden, weight, torch.zeros(3), target)
    with pytest.raises(ValueError, match="hidden"):
        importance_linear_forward(hidden[0], weight, None, target)
    with pytest.raises(ValueError, match="weight must not be empty"):
        importance_linear_forward(hidden[..., :0], weight[:, :0], None, target)
