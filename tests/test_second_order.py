"""Derivatives of derivatives: of the maps that are linear in pieces, and of log-likelihoods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import lipvae
from lipvae import functional
from lipvae.nn import GroupSort, LipschitzConv2d, LipschitzLinear

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


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own, on its first dual
@pytest.mark.parametrize("recording", [True, False])
def test_tangents_are_refused_and_not_dropped(recording: bool) -> None:
    net = LipschitzLinear(4, 4, group_size=2).requires_grad_(recording)
    with forward_ad.dual_level(), torch.set_grad_enabled(recording):
        x = forward_ad.make_dual(torch.rand(3, 4), torch.ones(3, 4))
        with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
            net(x)
        with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
            functional.group_sort(x, 2)
