"""The transforms of torch.func: they see the reference, whose derivatives the kernels have."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vmap

import lipvae
from lipvae import functional
from lipvae.nn import GroupSort, LipschitzConv2d, LipschitzLinear, LipschitzSequential, frozen

# torch makes its tables for forward mode by its own deprecated script; linearize warns of itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
]

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS, ROWS = normal(4, 6), normal(4), normal(3, 6, seed=2)
TARGET = torch.rand(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))

OPS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "group_sort": (functional.group_sort, normal(5, 8)),
    "group_sort of three": (lambda x: functional.group_sort(x, 3), normal(5, 6)),
    "project_l1_ball": (functional.project_l1_ball, normal(5, 7)),
    "lipschitz_linear, input": (
        lambda x: functional.lipschitz_linear(x, WEIGHT, BIAS, 0.7, 2),
        ROWS,
    ),
    "lipschitz_linear, weight": (
        lambda w: functional.lipschitz_linear(ROWS, w, None, 0.7, 4),
        WEIGHT,
    ),
    **{
        family: (
            lambda x, family=family: functional.importance_log_likelihood(x, TARGET, family),
            normal(2, 4, count * 3),
        )
        for family, count in {
            "bernoulli": 1,
            "continuous_bernoulli": 1,
            "gaussian": 2,
            "discretized_logistic": 2,
            "categorical256": 256,
        }.items()
    },
}


@pytest.mark.parametrize("name", OPS)
def test_vmap_is_the_loop(name: str) -> None:
    op, x = OPS[name]
    many = torch.stack([x, 2 * x, -x])
    torch.testing.assert_close(vmap(op)(many), torch.stack([op(one) for one in many]))


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_those_of_autograd(name: str) -> None:
    op, x = OPS[name]

    def loss(x: Tensor) -> Tensor:
        return op(x).square().sum()

    (expected,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    x.requires_grad_(False)
    torch.testing.assert_close(grad(loss)(x), expected)
    direction = normal(*x.shape, seed=5)
    _, slope = jvp(loss, (x,), (direction,))
    torch.testing.assert_close(slope, (expected * direction).sum())
    both = vmap(grad(loss))(torch.stack([x, -x]))
    torch.testing.assert_close(both[0], expected)


@pytest.mark.parametrize("name", OPS)
def test_many_gradients_at_once(name: str) -> None:
    op, x = OPS[name]
    x = x.clone().requires_grad_()
    y = op(x)
    grads = normal(3, *y.shape, seed=7)
    (many,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    for one, expected in zip(many, grads, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(y, x, expected, retain_graph=True)[0])


@pytest.mark.parametrize("name", OPS)
def test_tangents_go_through(name: str) -> None:
    op, x = OPS[name]
    direction = normal(*x.shape, seed=5)
    _, expected = jvp(op, (x,), (direction,))
    assert expected.abs().max() > 0.01
    with forward_ad.dual_level():
        y = op(forward_ad.make_dual(x, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)
    _, linear = linearize(op, x)
    torch.testing.assert_close(linear(direction), expected)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_batches_of_weights_are_not_those_that_were_frozen(backend: str | None) -> None:
    layer, x, weights = LipschitzLinear(6, 4).double().eval(), normal(3, 6), normal(2, 4, 6)

    def call(weight: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight}, (x,))

    chosen = contextlib.nullcontext() if backend is None else lipvae.backend(backend)
    with chosen, torch.no_grad():
        expected = vmap(call)(weights)
        with frozen(layer):
            assert torch.equal(vmap(call)(weights), expected)


def test_a_bayesian_model_keeps_nothing_of_a_transform() -> None:
    model = lipvae.BayesianVAE((1, 8, 8), 2, "fc", (8,)).double().train()
    x = torch.rand(4, 1, 8, 8, dtype=DOUBLE)
    found = vmap(lambda image: model.elbo(image[None]), randomness="different")(x)
    assert found.shape == (4, 1)
    vmap(lambda z: model.decode(z[None]), randomness="different")(normal(3, 2))
    assert model.decode(normal(3, 2)).isfinite().all()
    copy.deepcopy(model)


def net() -> LipschitzSequential:
    torch.manual_seed(0)
    return LipschitzSequential(
        LipschitzConv2d(1, 4, 3, group_size=2),
        nn.Flatten(),
        LipschitzLinear(16, 6),
        GroupSort(2),
        LipschitzLinear(6, 3),
        lipschitz=2.0,
    ).double()


def test_jacobians_of_a_network_keep_its_constant() -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    x = normal(1, 1, 4, 4)
    jacobians = [transform(model)(x) for transform in (jacrev, jacfwd)]
    jacobians.append(torch.autograd.functional.jacobian(model, x))
    jacobians.append(torch.autograd.functional.jacobian(model, x, vectorize=True))
    with frozen(model):
        jacobians.append(jacrev(model)(x))
    for jacobian in jacobians:
        torch.testing.assert_close(jacobian, jacobians[0])
        assert jacobian.flatten(2).abs().sum(-1).max() <= 2.0 * (1 + 1e-12)
    assert not hessian(lambda x: model(x).square().sum())(x).isnan().any()


def test_transforms_leave_the_thresholds_alone() -> None:
    layer = LipschitzLinear(6, 4).double().train()
    layer(normal(2, 6))
    before = layer.threshold.clone()
    parameters = {name: 2 * value for name, value in layer.named_parameters()}
    grad(lambda p: functional_call(layer, p, (normal(2, 6),)).sum())(parameters)
    assert torch.equal(layer.threshold, before)


class Reconstruction(nn.Module):
    def __init__(self, model: lipvae.VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model.decode(self.model.encode(x).loc)
        return functional.importance_log_likelihood(logits[None], x.flatten(1)).sum()


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_each_image(training: bool) -> None:
    model = lipvae.LipschitzVAE((1, 8, 8), 2, "fc", (8,)).double().train(training)
    x = torch.rand(3, 1, 8, 8, dtype=DOUBLE)
    parameters = dict(Reconstruction(model).named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(Reconstruction(model), parameters, (image[None],))

    many = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, image in enumerate(x):
        single = torch.autograd.grad(
            loss(parameters, image), list(parameters.values()), allow_unused=True
        )
        for name, expected in zip(parameters, single, strict=True):
            if expected is not None:
                torch.testing.assert_close(many[name][i], expected)


def test_what_transforms_cannot_see_into_says_so() -> None:
    loc, concentration = normal(2, 3), torch.ones(2, dtype=DOUBLE)
    with pytest.raises(NotImplementedError, match=r"density of vMF cannot .* torch\.func"):
        grad(lambda k: lipvae.ops.vmf_density.moment("kl", k, 3).sum())(concentration)
    seed = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match=r"samples of vMF cannot .* torch\.func"):
        grad(lambda k: lipvae.ops.vmf(loc, k, 2, seed)[0].sum())(concentration)
    with pytest.raises(NotImplementedError, match="samples of vMF"):
        vmap(functional.sample_vmf)(loc, concentration)
    with pytest.raises(NotImplementedError, match="samples of vMF"):
        linearize(lambda k: functional.sample_vmf(loc, k), concentration)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="density of vMF"):
        lipvae.ops.vmf_density.moment("kl", forward_ad.make_dual(concentration, loc[:, 0]), 3)


def test_another_backend_is_not_replaced_unasked() -> None:
    x = normal(4, 8)
    with lipvae.backend("cpp"), pytest.raises(RuntimeError, match="'cpp' was requested, but"):
        vmap(functional.group_sort)(x)
    with lipvae.backend("reference"):
        assert vmap(functional.group_sort)(x).shape == x.shape
