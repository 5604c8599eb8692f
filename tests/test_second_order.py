"""Derivatives of derivatives: of the maps that are linear in pieces, and of log-likelihoods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipvae
from lipvae import functional
from lipvae.nn import GroupSort, LipschitzConv2d, LipschitzLinear

# torch makes its tables for forward mode by its own deprecated script.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

BACKENDS = ["cpp", "reference"]


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def layer(x: Tensor, weight: Tensor, bias: Tensor, group: int | None) -> Tensor:
    return functional.lipschitz_linear(x, weight, bias, 0.7, group)


def test_second_derivatives_of_a_size_without_a_kernel() -> None:
    assert torch.autograd.gradgradcheck(lambda x: functional.group_sort(x, 3).square(), rand(2, 6))


FAMILIES = ("bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic")
CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "group_sort": (lambda x: functional.group_sort(x, 2, 1), [(2, 4, 3)]),
    "group_sort of 8": (lambda x: functional.group_sort(x, 8), [(2, 16)]),
    "l1_ball": (lambda w: functional.project_l1_ball(w, 0.8), [(3, 5)]),
    "layer": (lambda *t: layer(*t, 2), [(3, 5), (4, 5), (4,)]),
    "layer without a sort": (lambda *t: layer(*t, None), [(3, 5), (4, 5), (4,)]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name: str, backend: str) -> None:
    function, shapes = CASES[name]
    with lipvae.backend(backend):
        # The square makes the second derivative differ from zero.
        inputs = tuple(rand(*shape) for shape in shapes)
        assert torch.autograd.gradgradcheck(lambda *t: function(*t).square(), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_second_derivatives_of_log_likelihoods(family: str, backend: str) -> None:
    count = lipvae.reference.FAMILIES[family].parameters_per_dim
    target = torch.rand(2, 3, dtype=torch.float64).mul(255).round() / 255
    with lipvae.backend(backend):
        assert torch.autograd.gradgradcheck(
            lambda p: functional.importance_log_likelihood(p, target, family),
            (rand(2, 2, count * 3),),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_penalty(backend: str) -> None:
    """As of a critic: the gradient's norm with respect to the input, and its own gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(
        LipschitzConv2d(1, 4, 3, group_size=2), nn.Flatten(), LipschitzLinear(64, 8),
        GroupSort(4), nn.Tanh(), nn.Linear(8, 1),
    ).double()  # fmt: skip
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    with lipvae.backend(backend):
        for weight in (net[0].weight, net[2].weight):
            (found,) = torch.autograd.grad(penalty(), weight)
            at, step = (0,) * weight.dim(), 1e-6
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[at] += sign * step
                values.append(penalty().item())
                with torch.no_grad():
                    weight[at] -= sign * step
            expected = (values[0] - values[1]) / (2 * step)
            assert found[at].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jvp_by_two_gradients(backend: str) -> None:
    torch.manual_seed(0)
    net, x = LipschitzLinear(4, 4, group_size=2, dtype=torch.float64), torch.rand(3, 4).double()
    with lipvae.backend(backend):
        jacobian = torch.autograd.functional.jacobian(net, x)
        _, found = torch.autograd.functional.jvp(net, x, torch.ones_like(x))
    torch.testing.assert_close(found, jacobian.sum((2, 3)))
    assert found.abs().max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_paths_between_the_arguments_count_once(backend: str) -> None:
    torch.manual_seed(0)
    layer = LipschitzLinear(6, 6, group_size=2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.normal_()
    x, w = torch.randn(3, 6).double(), layer.weight
    outputs = {
        "one layer twice": lambda: layer(layer(x)),
        "bias of the weight": lambda: functional.lipschitz_linear(x, w, w.sum(1), 1.3, 2),
        "the weight's own rows": lambda: functional.lipschitz_linear(w, w, None, 1.3, 2),
    }
    with lipvae.backend(backend):
        for output in outputs.values():
            (once,) = torch.autograd.grad(output().sin().sum(), w)
            (again,) = torch.autograd.grad(output().sin().sum(), w, create_graph=True)
            torch.testing.assert_close(again, once)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_hooks_are_called_once() -> None:
    layer, calls = LipschitzLinear(6, 6, group_size=2), []
    layer.weight.register_hook(lambda grad: calls.append(1))
    layer(torch.randn(3, 6)).sum().backward(create_graph=True)
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("bernoulli", [-800.0, -89.0, 0.0, 89.0, 800.0]),
        ("continuous_bernoulli", [-800.0, -95.0, -30.0, 30.0, 95.0, 800.0]),
        ("discretized_logistic", [0.3, -10.2]),
        ("discretized_logistic", [0.3, -12.2]),
    ],
)
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_second_derivatives_do_not_overflow(
    family: str, parameters: list[float], dtype: torch.dtype, x: float
) -> None:
    at = torch.tensor(parameters, dtype=dtype).view(1, 1, -1)
    target = torch.full((1, at.shape[-1] // (2 if "logistic" in family else 1)), x, dtype=dtype)

    def total(parameters: torch.Tensor) -> torch.Tensor:
        return functional.importance_log_likelihood(parameters, target, family).sum()

    double = torch.autograd.functional.hessian(total, at).view(at.numel(), -1)
    transformed = torch.func.hessian(total)(at).view(at.numel(), -1)
    assert double.isfinite().all()
    torch.testing.assert_close(double, transformed, rtol=1e-3, atol=1e-4)
    if family == "continuous_bernoulli":
        torch.testing.assert_close(double.diagonal(), -1 / at.flatten().square(), rtol=1e-3, atol=0)


def test_autocast_does_not_reach_the_layer_s_derivatives() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(32, 64), torch.randn(16, 64, requires_grad=True)

    def total(x: torch.Tensor) -> torch.Tensor:
        return functional.lipschitz_linear(x, weight, None, 1.0, 2).sin().sum()

    (expected,) = torch.autograd.grad(total(x), x)
    with torch.autocast("cpu", torch.bfloat16):
        (again,) = torch.autograd.grad(total(x), x, create_graph=True)
        transformed = torch.func.grad(total)(x.detach())
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(transformed, expected, rtol=1e-5, atol=1e-6)
