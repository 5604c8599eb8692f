"""Certificates: sound against rounding and against search, tight where they can be."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn

import lipvae
from lipvae.nn import (
    GroupSort,
    LipschitzConv2d,
    LipschitzLinear,
    LipschitzSequential,
    certify,
    frozen,
    lipschitz_layers,
)


def linear(weight, bias=None, lipschitz=1e6, group_size=None, dtype=torch.float32):
    """A layer of a given weight, inside its ball."""
    weight = torch.as_tensor(weight, dtype=dtype)
    layer = LipschitzLinear(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        lipschitz=lipschitz,
        group_size=group_size,
        dtype=dtype,
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))
    return layer


def randomised(net, factor=3.0):
    with torch.no_grad():
        for layer in lipschitz_layers(net):
            layer.weight.normal_(std=factor * layer.lipschitz / layer.weight[0].numel())
            layer.bias.normal_(std=0.1)
    return net


def conv_net(g=2, stride=2, padding=1):
    return randomised(
        LipschitzSequential(
            LipschitzConv2d(1, 8, 3, stride, padding, group_size=g),
            LipschitzConv2d(8, 8, 3, stride, padding, group_size=g),
            nn.Flatten(),
            nn.Identity(),
            LipschitzLinear(8 * 4, 16, group_size=g),
            LipschitzLinear(16, 3),
            lipschitz=4.0,
        )
    )


def fc_net(g=2):
    return randomised(
        LipschitzSequential(
            nn.Flatten(),
            LipschitzLinear(64, 32, group_size=g),
            LipschitzLinear(32, 32),
            GroupSort(g),
            LipschitzLinear(32, 3),
            lipschitz=4.0,
        )
    )


# --- search -------------------------------------------------------------------------------------


def extremes(net, x, steps=20):
    """Drives each output up or down over [0, 1]^n: signed gradient steps, then flips to vertices.

    Rows share out the outputs and the directions. Returns the points visited, [N, ...].
    """
    m = net(x[:1]).shape[1]
    row = torch.arange(len(x))
    output, sign = row % m, (row // m) % 2 * 2 - 1
    visited = []
    for step in range(steps):
        x = x.detach().requires_grad_()
        value = (net(x)[row, output] * sign).sum()
        direction = torch.autograd.grad(value, x)[0].sign()
        size = 1.0 if step >= steps - 3 else 0.3 * (1 - step / steps) + 0.02
        x = (x.detach() + size * direction).clamp(0, 1)
        visited.append(x)
    return torch.cat(visited[-4:])


def steepest_pairs(net, x, y, steps=20, rate=0.1):
    """Drives pairs towards a large |f_j(x) - f_j(y)| / |x - y|_inf, over [0, 1]^n.

    The best y for a small step from x differs from it by a constant along the gradient's sign,
    so every other step takes that one, at a random length; the others ascend the ratio itself.
    """
    row = torch.arange(len(x))
    output = row % net(x[:1]).shape[1]
    best, best_x, best_y = torch.zeros(len(x), dtype=x.dtype), x, y
    for step in range(steps):
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        distance = (x - y).abs().flatten(1).amax(1).clamp(min=1e-9)
        ratio = (net(x) - net(y)).abs()[row, output] / distance
        improved = ratio.detach() > best
        best = torch.where(improved, ratio.detach(), best)
        mask = improved.view(-1, *[1] * (x.dim() - 1))
        best_x, best_y = (
            torch.where(mask, x.detach(), best_x),
            torch.where(mask, y.detach(), best_y),
        )
        grad_x, grad_y = torch.autograd.grad(ratio.sum(), [x, y])
        if step % 2:
            x = best_x.clone().requires_grad_()
            grad_x = torch.autograd.grad(net(x)[row, output].sum(), x)[0]
            length = 10 ** (-3 * torch.rand(len(x), dtype=x.dtype)).view(mask.shape)
            y = (x.detach() - length * grad_x.sign()).clamp(0, 1)
        else:
            x = (x.detach() + rate * grad_x.sign()).clamp(0, 1)
            y = (y.detach() + rate * grad_y.sign()).clamp(0, 1)
    return best_x, best_y


def largest_ratio(net, x, y):
    with torch.no_grad():
        moved = (net(x) - net(y)).abs().amax(1)
    distance = (x - y).abs().flatten(1).amax(1)
    return float((moved[distance > 0] / distance[distance > 0]).max())


def assert_holds(net, x, y, found=None):
    """No ratio above M and no output outside the box: exact in float64, executed in float32."""
    double = copy.deepcopy(net).double()
    truth, executed = (
        certify(double, input_shape=x.shape[1:]),
        certify(net, input_shape=x.shape[1:]),
    )
    assert truth.lipschitz <= truth.bound
    assert executed.lipschitz <= executed.bound
    with frozen(net), frozen(double), torch.no_grad():
        points = torch.cat([x, y])
        assert bool(executed.contains(net(points.float())).all())
        assert bool(truth.contains(double(points.double())).all())
        # A ratio in double is off by its outputs' rounding over the distance, which the
        # certificate bounds; pairs are at least 1e-3 apart.
        far = (x - y).abs().flatten(1).amax(1) >= 1e-3
        x, y = x[far].double(), y[far].double()
        distance = (x - y).abs().flatten(1).amax(1, keepdim=True)
        moved = (double(x) - double(y)).abs()
        allowed = truth.coordinate_lipschitz * distance + 2 * truth.rounding
        assert bool((moved <= allowed).all())
        assert float((moved / distance).max()) <= truth.bound
    if found is not None:
        found["ratio / M"] = float((moved / distance).max()) / truth.bound


# --- soundness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [conv_net, fc_net])
@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_holds_over_random_and_sought_pairs(build, group_size):
    net = build(group_size)
    x, y = torch.rand(2, 300, 1, 8, 8)
    net.requires_grad_(False)
    with frozen(net):
        assert_holds(net, *steepest_pairs(net, x, y))
        vertices = extremes(net, x)
        assert_holds(net, vertices, vertices.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_layer_is_tight(dtype):
    weight = torch.tensor([[0.5, -0.25, 0.125], [1.0, 1.0, 1.0]], dtype=dtype)
    certificate = certify(linear(weight, [1.0, -2.0], dtype=dtype), input_low=-1.0, input_high=3.0)
    eps = torch.finfo(dtype).eps
    # W+ l + W- u + b, by hand
    torch.testing.assert_close(
        certificate.lower, torch.tensor([-0.375, -5.0]).double(), rtol=0, atol=100 * eps
    )
    torch.testing.assert_close(
        certificate.upper, torch.tensor([3.125, 7.0]).double(), rtol=0, atol=100 * eps
    )
    assert bool((certificate.lower < torch.tensor([-0.375, -5.0])).all())
    assert bool((certificate.upper > torch.tensor([3.125, 7.0])).all())
    assert 3.0 <= certificate.lipschitz <= 3.0 * (1 + 1e-15)
    torch.testing.assert_close(
        certificate.coordinate_lipschitz, torch.tensor([0.875, 3.0]).double(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        certificate.center, torch.tensor([1.375, 1.0]).double(), rtol=1e-12, atol=0
    )
    assert bool((certificate.radius >= certificate.diameter / 2).all())


def test_a_ratio_of_exactly_m_is_reached_and_not_exceeded():
    # f = 2 (x1 + x2) / 2 by two layers of radius 1 and 2: the corners give the ratio 2.
    first = linear([[0.5, 0.5], [0.5, -0.5]], lipschitz=1.0)
    net = nn.Sequential(first, linear([[2.0, 0.0]], lipschitz=2.0))
    certificate = certify(net)
    x, y = torch.zeros(1, 2), torch.ones(1, 2)
    assert largest_ratio(net, x, y) == 2.0
    assert 2.0 <= certificate.lipschitz <= 2.0 * (1 + 1e-15)
    assert certificate.bound >= certificate.lipschitz
    assert bool(certificate.contains(torch.cat([net(x), net(y)])).all())
    torch.testing.assert_close(
        certificate.diameter, torch.full((1,), 2.0).double(), rtol=1e-5, atol=0
    )


def test_the_ball_is_tighter_than_intervals_where_signs_cancel():
    # Intervals forget that both hidden units move together: 2x - 2x + ... over [0, 1].
    net = nn.Sequential(
        linear([[1.0], [1.0]], lipschitz=1.0), linear([[1.0, -1.0]], [0.5], lipschitz=2.0)
    )
    certificate = certify(net)
    assert bool((certificate.diameter <= 2.0 + 1e-5).all())
    wide = linear([[1.0, -1.0]], lipschitz=2.0)
    torch.testing.assert_close(
        certify(wide).diameter, torch.full((1,), 2.0).double(), rtol=1e-5, atol=0
    )


def test_intervals_are_tighter_than_the_ball_where_a_sort_is_decided():
    # The bias of 5 decides every comparison, so the second output is known to be unit 1.
    net = nn.Sequential(linear([[1.0], [0.1]], [0.0, 5.0], group_size=2))
    certificate = certify(net)
    torch.testing.assert_close(
        certificate.diameter, torch.tensor([1.0, 0.1]).double(), rtol=1e-4, atol=0
    )
    # A constant of its own for each output cannot know that.
    torch.testing.assert_close(
        certificate.coordinate_lipschitz, torch.tensor([1.0, 1.0]).double(), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("terms", [3, 100, 4000])
def test_covers_the_rounding_of_the_executed_sum(terms):
    # Terms that nearly cancel: the executed sum is off by many of its own units.
    generator = torch.Generator().manual_seed(terms)
    weight = torch.randn(4, terms, generator=generator)
    layer = linear(weight, torch.randn(4, generator=generator))
    x = torch.rand(1, terms, generator=generator)
    certificate = certify(layer, x[0], x[0])
    got = layer(x)[0].detach()
    for j in range(4):
        exact = sum(
            (Fraction(w) * Fraction(v) for w, v in zip(weight[j].tolist(), x[0].tolist(),
                                                       strict=True)),
            Fraction(layer.bias[j].item()),
        )  # fmt: skip
        assert abs(Fraction(got[j].item()) - exact) <= Fraction(certificate.rounding[j].item())
        assert Fraction(certificate.lower[j].item()) <= exact
        assert exact <= Fraction(certificate.upper[j].item())
    assert bool(certificate.contains(got))
    # Not vacuous: n units of roundoff of the sum of magnitudes.
    size = weight.abs() @ x[0] + layer.bias.abs()
    assert bool((certificate.rounding <= 1.1 * (terms + 6) * 2.0**-24 * size).all())


def test_a_box_of_one_point_holds_whatever_order_sums_take():
    weight, x = torch.randn(8, 1000), torch.rand(1000)
    certificate = certify(linear(weight), x, x)
    for order in (torch.arange(1000), torch.randperm(1000), weight[0].mul(x).argsort()):
        total = torch.zeros(8)
        for i in order.tolist():
            total = total + weight[:, i] * x[i]
        assert bool(certificate.contains(total))


@pytest.mark.parametrize("of_bias", [False, True])
def test_a_sum_that_loses_every_term_is_covered(of_bias):
    # In order, each term is below half a unit of the running sum: n roundings, all one way.
    small, n = 2.0**-24 * (1 - 2.0**-10), 3000
    weight = torch.full((1, n), small)
    bias = torch.tensor([1.0 if of_bias else 0.0])
    if not of_bias:
        weight[0, 0] = 1.0
    x = torch.ones(n)
    certificate = certify(linear(weight, bias), x, x)
    total = bias.clone()
    for term in weight[0]:
        total += term
    assert total.item() == 1.0
    assert certificate.rounding.item() >= sum(weight[0].double()) + bias.double().item() - 1
    assert bool(certificate.contains(total))


def test_flushed_subnormals_are_covered():
    tiny = 2.0**-126
    certificate = certify(linear([[tiny, -tiny]]), 0.0, 0.5)
    # Kept, the outputs are subnormal; flushed, they are zero.
    assert bool(certificate.contains(torch.tensor([[0.5 * tiny], [0.0], [-0.5 * tiny]])).all())


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((3, 1), (0, 2))])
def test_convolution_agrees_with_its_matrix(stride, padding):
    conv = LipschitzConv2d(2, 4, 3, stride, padding, group_size=2, lipschitz=2.0)
    randomised(conv)
    x = torch.eye(2 * 6 * 6).view(-1, 2, 6, 6)
    with torch.no_grad():
        plain = copy.deepcopy(conv)
        plain.group_size = None
        zero = plain(torch.zeros(1, 2, 6, 6))
        matrix = (plain(x) - zero).flatten(1).t()
    low, high = torch.rand(2, 6, 6) - 1, torch.rand(2, 6, 6)
    got = certify(plain, low, high)
    want = certify(linear(matrix, zero.flatten()), low.flatten(), high.flatten())
    for name in ("lower", "upper", "center", "coordinate_lipschitz"):
        torch.testing.assert_close(
            getattr(got, name).flatten(), getattr(want, name), rtol=1e-4, atol=1e-4
        )
    outputs = conv(low + (high - low) * torch.rand(50, 2, 6, 6)).detach().flatten(1)
    sorted_ = certify(nn.Sequential(conv, nn.Flatten()), low, high)
    assert bool(sorted_.contains(outputs).all())


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_interval_of_group_sort_is_exact(size):
    # Order statistics of a box: each bound is reached at a corner.
    low, high = torch.rand(12) - 1, torch.rand(12)
    certificate = certify(nn.Sequential(linear(torch.eye(12)), GroupSort(size)), low, high)
    corners = torch.stack([low, high])
    got = GroupSort(size)(corners)
    torch.testing.assert_close(certificate.lower, got[0].double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(certificate.upper, got[1].double(), rtol=1e-4, atol=1e-4)


def test_bound_does_not_depend_on_the_weights():
    net = fc_net()
    before = certify(net).bound
    randomised(net, 100.0)
    after = certify(net)
    assert after.bound == before == 4.0
    assert 3.999 < after.lipschitz <= 4.0
    assert bool((after.coordinate_lipschitz <= after.lipschitz).all())


def test_a_radius_that_was_raised_raises_the_bound():
    net = fc_net()
    net[1].lipschitz *= 10
    assert certify(net).bound > 39


@pytest.mark.parametrize("architecture", ["fc", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli"])
def test_model_certificate(architecture, likelihood):
    model = lipvae.LipschitzVAE((1, 8, 8), 6, architecture, likelihood=likelihood).eval()
    x = torch.rand(100, 1, 8, 8)
    for head in ("loc", "log_variance"):
        certificate = model.certificate(head)
        assert certificate.bound == model.lipschitz == 4.0
        assert certificate.lipschitz <= 4.0
        assert bool((certificate.diameter <= 4.0 + 2 * certificate.rounding.max()).all())
        assert bool(certificate.contains(getattr(model.encode(x), head)).all())
    free = lipvae.LipschitzVAE((1, 8, 8), 6, "fc", constrain_log_variance=False)
    with pytest.raises(ValueError, match="not constrained"):
        free.certificate("log_variance")
    with pytest.raises(ValueError, match="head must be"):
        free.certificate("scale")


# --- modules in two places ----------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda a, b: nn.Sequential(nn.Sequential(a), b)])
def test_a_layer_that_is_run_twice_counts_twice(wrap):
    tripling = linear(3 * torch.eye(4), lipschitz=3.0)
    certificate = certify(wrap(tripling, tripling))
    assert 9.0 <= certificate.lipschitz <= 9.001
    assert bool(((certificate.upper >= 9.0) & (certificate.upper <= 9.001)).all())


def test_an_activation_that_is_shared_is_applied_in_each_place():
    act = GroupSort(2)
    first, second = linear(torch.eye(2)), linear(torch.eye(2), bias=[5.0, 0.0])
    last = linear(torch.tensor([[1.0, 0.0]]))
    shared = certify(nn.Sequential(first, act, second, act, last))
    apart = certify(nn.Sequential(first, GroupSort(2), second, GroupSort(2), last))
    assert torch.equal(shared.lower, apart.lower)
    assert torch.equal(shared.upper, apart.upper)
    assert shared.lower < 0.001  # f([0.2, 0.4]) is 0.4; without the second sort it would be 5.2


def test_a_shared_layer_of_a_sequential_gets_its_share_for_each_place():
    layer = linear(torch.eye(2), lipschitz=1.0)
    net = LipschitzSequential(layer, GroupSort(2), layer, lipschitz=4.0)
    assert layer.lipschitz == pytest.approx(2.0)
    torch.testing.assert_close(layer.weight, 2 * torch.eye(2))  # scaled once
    with torch.no_grad():
        layer.weight.mul_(100)
    moved = net(torch.ones(1, 2)) - net(torch.zeros(1, 2))
    assert moved.abs().max() <= certify(net).lipschitz <= 4.0


# --- refusals -----------------------------------------------------------------------------------


class Renamed(LipschitzLinear):
    pass


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(LipschitzLinear(4, 4), nn.ReLU()), r"module 1 \(ReLU\) cannot be certified"),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 4))), r"module 0.0 \(Linear\)"),
        (nn.ReLU(), r"module \(root\) \(ReLU\)"),
        (nn.Sequential(Renamed(4, 4)), r"module 0 \(Renamed\)"),
        (
            nn.Sequential(LipschitzLinear(4, 4, dtype=torch.float64).bfloat16()),
            "float32 or float64",
        ),
    ],
)
def test_refuses_what_it_does_not_know(net, message):
    with pytest.raises(TypeError, match=message):
        certify(net, input_shape=(4,))


@pytest.mark.parametrize(
    ("net", "arguments", "error", "message"),
    [
        (fc_net(), {"input_low": 1.0, "input_high": 0.0}, ValueError, "must not exceed"),
        (fc_net(), {"input_low": float("nan")}, ValueError, "input_low must be finite"),
        (fc_net(), {"input_high": "1"}, TypeError, "input_high must be a number or a tensor"),
        (fc_net(), {"input_low": torch.zeros(3)}, ValueError, r"takes inputs of shape \[64\]"),
        (
            fc_net(),
            {"input_low": torch.zeros(64), "input_high": torch.ones(8, 8)},
            ValueError,
            "input_high must have shape",
        ),
        (conv_net(), {}, ValueError, "input_shape must be given"),
        (conv_net(), {"input_shape": (3, 8, 8)}, ValueError, "takes inputs of shape"),
        (conv_net(), {"input_shape": (64,)}, ValueError, "takes inputs of shape"),
        (nn.Sequential(linear(torch.eye(4)), GroupSort(3)), {}, ValueError, "multiple of 3"),
        (nn.Sequential(linear(torch.eye(4)), GroupSort(2, 0)), {}, ValueError, "over the batch"),
        (nn.Sequential(linear(torch.eye(4)), nn.Flatten(0)), {}, ValueError, "batch dimension"),
        (
            nn.Sequential(linear(torch.eye(4)), nn.Unflatten(0, (1, 1))),
            {},
            ValueError,
            "batch dimension",
        ),
    ],
)
def test_bad_arguments(net, arguments, error, message):
    with pytest.raises(error, match=message):
        certify(net, **arguments)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["root", "layer"])
def test_refuses_hooks(hook, place):
    net = nn.Sequential(LipschitzLinear(4, 4), GroupSort(2))
    handle = getattr(net if place == "root" else net[0], hook)(lambda *arguments: None)
    with pytest.raises(TypeError, match="forward hooks"):
        certify(net)
    handle.remove()
    certify(net)


def test_refuses_what_replaces_a_forward_or_watches_all() -> None:
    net = LipschitzSequential(LipschitzLinear(3, 2), lipschitz=1.0)
    with (
        nn.modules.module.register_module_forward_hook(lambda *_: None),
        pytest.raises(TypeError, match="forward hooks"),
    ):
        certify(net)
    certify(net)
    net[0].forward = lambda x: 100 * x
    with pytest.raises(TypeError, match=r"a forward\(\) of its own"):
        certify(net)


def test_unflatten_and_identity_pass_through():
    net = nn.Sequential(
        nn.Identity(), linear(torch.eye(16)), nn.Unflatten(1, (1, 4, 4)), LipschitzConv2d(1, 2, 3)
    )
    certificate = certify(net, -1.0, 1.0)
    assert certificate.lower.shape == (2, 2, 2)
    assert certificate.lipschitz <= 1.0


# --- the bar ------------------------------------------------------------------------------------


def trained_encoder(architecture, images):
    torch.manual_seed(0)
    model = lipvae.LipschitzVAE(images.shape, 10, architecture)
    lipvae.fit(model, images, epochs=30, batch_size=64, progress=False)
    net = LipschitzSequential(model.trunk, model.loc, lipschitz=model.lipschitz)
    return net.requires_grad_(False).eval()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_holds_for_a_trained_encoder_over_ten_thousand_pairs(architecture):
    images = lipvae.data.load("digits", "train")
    net = trained_encoder(architecture, images)
    pixels = images.float()
    real = pixels[torch.randint(len(pixels), (2, 10_000))]
    found = {}
    assert_holds(net, *real, found)
    print(f"{architecture}: largest ratio over real pairs {found['ratio / M']:.4f} M")
    start = torch.cat([real[:, :5_000], torch.rand(2, 5_000, *images.shape)], 1)
    with frozen(net):
        sought = [
            torch.cat(parts)
            for parts in zip(
                *(steepest_pairs(net, *chunk.unbind(0)) for chunk in start.split(1000, 1)),
                strict=True,
            )
        ]
        vertices = extremes(net, start[0])
    assert_holds(net, *sought, found)
    print(f"{architecture}: largest ratio over sought pairs {found['ratio / M']:.4f} M")
    # The search is worth its name: it gets closer to M than any pair of real images.
    assert found["ratio / M"] > largest_ratio(net, *real) / net.lipschitz
    assert_holds(net, vertices, vertices.flip(0))
    certificate = certify(net, input_shape=images.shape)
    reached = (net(vertices).amax(0) - net(vertices).amin(0)) / certificate.diameter
    print(f"{architecture}: share of the certified range reached {reached.tolist()}")
