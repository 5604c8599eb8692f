"""Layers: what they compute, their warm start, freezing, compilation, state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import lipvae
from lipvae import ops, reference
from lipvae.nn import (
    GroupSort,
    LipschitzConv2d,
    LipschitzLinear,
    LipschitzSequential,
    frozen,
    lipschitz_layers,
    set_lipschitz,
    sparse_rows_,
)
from lipvae.nn.sequential import layer_radius

ROUNDING = 1 + 2.0**-23


def grown(layer, factor=5.0):
    """The layer with rows well outside the ball, as after training."""
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight) * factor)
        if layer.bias is not None:
            layer.bias.normal_()
    return layer


def conv_oracle(layer, x):
    """The convolution as a matrix product over unfolded patches, in float64."""
    weight = reference.project_l1_ball(layer.weight.double().flatten(1), layer.lipschitz)
    patches = nn.functional.unfold(
        x.double(), layer.kernel_size, padding=layer.padding, stride=layer.stride
    )
    y = weight @ patches + layer.bias.double()[:, None]
    if layer.group_size is not None:
        y = reference.group_sort(y, layer.group_size, 1)
    height = (x.shape[2] + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1
    return y.unflatten(2, (height, -1))


@pytest.mark.parametrize("group_size", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7)])
def test_linear_is_equation_1(group_size, shape):
    layer = grown(LipschitzLinear(7, 12, lipschitz=1.5, group_size=group_size))
    x = torch.randn(shape)
    truth = reference.lipschitz_linear(
        x.double(), layer.weight.double(), layer.bias.double(), 1.5, group_size
    )
    torch.testing.assert_close(layer(x).double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "group_size"),
    [(3, 1, 0, None), (3, 2, 1, 2), (4, 2, 1, 4), ((3, 2), (1, 3), (2, 0), 2), (1, 1, 0, 3)],
)
def test_conv_is_equation_1_on_patches(kernel_size, stride, padding, group_size):
    layer = grown(
        LipschitzConv2d(3, 12, kernel_size, stride, padding, lipschitz=0.7, group_size=group_size)
    )
    x = torch.randn(2, 3, 9, 11)
    torch.testing.assert_close(layer(x).double(), conv_oracle(layer, x), rtol=1e-5, atol=1e-5)


def test_conv_gradient_is_that_of_the_patches():
    layer = grown(LipschitzConv2d(2, 4, 3, 2, 1, group_size=2)).double()
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    want = torch.autograd.grad(conv_oracle(layer, x).square().sum(), [x, *layer.parameters()])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("radius", [1e-3, 0.5, 1.0, 37.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_sums_exceed_the_radius_by_at_most_one_rounding(radius, dtype):
    for layer in (
        LipschitzLinear(3136, 256, lipschitz=radius, dtype=dtype),
        LipschitzConv2d(64, 64, 4, lipschitz=radius, dtype=dtype),
    ):
        for factor in (1e-4, 1.0, 1e4):
            rows = grown(layer, factor * radius).projected_weight().detach().flatten(1)
            largest = max(math.fsum(row) for row in rows.double().abs().tolist())
            assert largest <= radius * (1 + torch.finfo(dtype).eps)


def test_fresh_rows_are_sparse_and_inside_the_ball():
    layer = LipschitzLinear(784, 128, lipschitz=2.0)
    magnitude = layer.weight.detach().abs()
    norm = magnitude.sum(1)
    assert bool((norm < 2.0).all())
    largest = magnitude.topk(8, dim=1).values.sum(1)
    torch.testing.assert_close(largest, torch.full((128,), 1.9), rtol=1e-2, atol=0)
    assert bool((magnitude > 0).all())
    assert not layer.bias.any()
    positive = (layer.weight > 0).float().mean()
    assert 0.4 < float(positive) < 0.6


def test_rows_shorter_than_eight_are_dense():
    weight = sparse_rows_(torch.empty(5, 3), 1.0)
    assert bool((weight.abs() > 0.05).all())
    torch.testing.assert_close(weight.abs().sum(1), torch.full((5,), 0.95), rtol=0.05, atol=0)


def test_initialisation_follows_the_generator():
    draws = [sparse_rows_(torch.empty(4, 20), generator=torch.Generator().manual_seed(s)) for s in
             (1, 1, 2)]  # fmt: skip
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_signal_survives_depth():
    # The reason for sparse rows: dense ones of the same norm lose the signal in a few layers.
    layers = [LipschitzLinear(256, 256, group_size=2) for _ in range(4)]
    sparse = nn.Sequential(LipschitzLinear(784, 256, group_size=2), *layers)
    dense = copy.deepcopy(sparse)
    with torch.no_grad():
        for layer in lipschitz_layers(dense):
            layer.weight.uniform_(-1, 1)
            layer.weight.div_(layer.weight.abs().sum(1, keepdim=True))
    x = torch.rand(64, 784)
    with torch.no_grad():
        spread_sparse, spread_dense = sparse(x).std(0).mean(), dense(x).std(0).mean()
    assert spread_sparse > 4 * spread_dense


def test_warm_start_changes_no_result():
    layer = grown(LipschitzLinear(200, 64, group_size=2)).train()
    cold = copy.deepcopy(layer).eval()
    x = torch.randn(8, 200)
    for _ in range(3):
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight) * 0.1)
            cold.weight.copy_(layer.weight)
        assert torch.equal(layer(x), cold(x))
        assert not cold.threshold.any()
    want = reference.l1_ball_threshold(layer.weight, 1.0)
    torch.testing.assert_close(layer.threshold, want, rtol=1e-12, atol=1e-12)


def test_warm_start_leaves_autograd_alone():
    layer = grown(LipschitzLinear(20, 6, group_size=2)).train()
    x = torch.randn(4, 20)
    # Two passes before one backward: the threshold of the first has been overwritten by then.
    first = layer(x).sum()
    with torch.no_grad():
        layer.weight.mul_(1.0)
    weight = layer.weight.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    second = layer(2 * x).sum()
    second.backward()
    want = reference.lipschitz_linear(2 * x, weight, bias, 1.0, 2).sum()
    want.backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-4, atol=1e-5)
    assert first.requires_grad


def test_threshold_stays_double_and_out_of_the_state():
    layer = grown(LipschitzLinear(20, 6)).train()
    layer(torch.randn(2, 20))
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert layer.threshold.any()
    for moved in (layer.double(), layer.float(), layer.to("cpu")):
        assert moved.threshold.dtype == torch.float64
    copied = copy.deepcopy(layer)
    assert copied.threshold.data_ptr() != layer.threshold.data_ptr()
    fresh = LipschitzLinear(20, 6)
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(3, 20)
    assert torch.equal(fresh(x), layer(x))


def test_a_spoilt_threshold_heals():
    # Weights that were NaN for a step, then loaded again, must not start Newton from NaN.
    layer = grown(LipschitzLinear(20, 6)).train()
    x = torch.randn(3, 20)
    want = layer(x)
    for value in (math.nan, math.inf, -1.0, 1e30):
        layer.threshold.fill_(value)
        torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6)


def test_thresholds_of_a_replaced_weight_are_not_used():
    conv = LipschitzConv2d(2, 4, 3).train()
    x = torch.rand(1, 2, 5, 5)
    conv(x)
    conv.weight = nn.Parameter(torch.randn(400, 2, 3, 3))
    conv.bias = None
    assert torch.equal(conv(x), copy.deepcopy(conv).eval()(x))
    assert conv.threshold.shape == (400,)


def test_layers_without_bias():
    linear, conv = LipschitzLinear(6, 4, bias=False), LipschitzConv2d(1, 2, 3, bias=False)
    assert linear.bias is None
    assert not linear(torch.zeros(2, 6)).any()
    assert not conv(torch.zeros(1, 1, 5, 5)).any()
    assert set(conv.state_dict()) == {"weight"}


def encoder():
    return LipschitzSequential(
        LipschitzConv2d(1, 4, 3, 2, 1, group_size=2),
        nn.Flatten(),
        LipschitzLinear(4 * 16, 16, group_size=4),
        LipschitzLinear(16, 5, group_size=None),
        lipschitz=5.0,
    )


def test_frozen_is_the_same_bit_for_bit_and_projects_once(monkeypatch):
    net = encoder()
    for layer in lipschitz_layers(net):
        grown(layer)
    calls = []
    projected = LipschitzLinear.projected_weight
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        want = net(x)
        for cls in (LipschitzLinear, LipschitzConv2d):
            monkeypatch.setattr(cls, "projected_weight", lambda s: calls.append(1) or projected(s))
        packed = LipschitzLinear.packed
        monkeypatch.setattr(LipschitzLinear, "packed", lambda s: calls.append(1) or packed(s))
        forward = ops.lipschitz_linear
        monkeypatch.setattr(ops, "lipschitz_linear", lambda *a: calls.append(1) or forward(*a))
        with frozen(net) as same:
            assert same is net
            for _ in range(3):
                assert torch.equal(net(x), want)
            assert len(calls) == 3
            with frozen(net):  # for which it projects itself: the outer one may be another thread's
                assert torch.equal(net(x), want)
            assert torch.equal(net(x), want)
        assert len(calls) == 6
        assert torch.equal(net(x), want)
    assert len(calls) == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group_size", [None, 1, 2, 3, 4, 8])
def test_frozen_layers_and_batches_have_one_set_of_bits(group_size, dtype):
    """Whoever multiplies: with and without autograd, frozen or not, whatever the batch."""
    layer = grown(LipschitzLinear(37, 24, group_size=group_size), 0.5).to(dtype)
    x = torch.rand(300, 37, dtype=dtype)
    recorded = layer(x).detach()
    with torch.no_grad():
        assert torch.equal(layer(x), recorded)
        assert torch.equal(layer.packed()(x), recorded)
        with frozen(layer):
            assert torch.equal(layer(x), recorded)
            assert torch.equal(layer(x.T.contiguous().T), recorded)
            assert torch.equal(layer(x.view(3, 100, 37)), recorded.view(3, 100, 24))
            assert torch.equal(layer(x[7]), recorded[7])
            assert layer(x[:0]).shape == (0, 24)
            with lipvae.backend("reference"):
                truth = layer(x)
            torch.testing.assert_close(recorded, truth)
        with lipvae.backend("reference"), frozen(layer):
            assert torch.equal(layer(x), truth)
            if group_size != 3:  # for which there is no kernel to ask for
                with lipvae.backend("cpp"):
                    assert torch.equal(layer(x), recorded)
    with frozen(layer), pytest.raises(ValueError, match="37 features"), torch.no_grad():
        layer(torch.rand(3, 36, dtype=dtype))


def test_a_packed_layer_does_not_follow_its_weight():
    layer = grown(LipschitzLinear(6, 4, group_size=2), 0.5)
    x, packed = torch.rand(5, 6), layer.packed()
    before = layer(x).detach()
    with torch.no_grad():
        layer.weight.neg_()
        layer.bias.add_(1)
    assert not torch.equal(layer(x), before)
    assert torch.equal(packed(x), before)
    assert not packed(x).requires_grad
    with pytest.raises(ValueError, match=r"x must be torch.float32 \[\.\.\., N, 6\]"):
        packed(x.double())


def test_parametrized_layers_are_what_their_parametrization_says():
    layer = LipschitzLinear(6, 4)
    x = torch.rand(5, 6)

    class Negative(nn.Module):
        def forward(self, weight):
            return -weight

    before = layer(x).detach()
    bias = layer.bias.detach()
    nn.utils.parametrize.register_parametrization(layer, "weight", Negative())
    torch.testing.assert_close(layer(x) - bias, bias - before)


def test_frozen_ends_with_the_block_even_by_an_error():
    net = encoder()
    with pytest.raises(ZeroDivisionError), frozen(net):
        raise ZeroDivisionError
    x = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        before = net(x)
        for layer in lipschitz_layers(net):
            layer.weight.mul_(-1)
        assert not torch.equal(net(x), before)


@pytest.mark.parametrize(
    ("layer", "shape"), [(LipschitzLinear(6, 4), (6,)), (LipschitzConv2d(2, 4, 3), (2, 5, 5))]
)
def test_frozen_does_not_swallow_gradients(layer, shape):
    layer = grown(copy.deepcopy(layer), 0.5)
    x = torch.rand(3, *shape, requires_grad=True)
    with frozen(layer):
        layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()
    layer.requires_grad_(False)
    want = torch.autograd.grad(layer(x).sum(), x)[0]
    with frozen(layer):
        assert torch.equal(torch.autograd.grad(layer(x).sum(), x)[0], want)


def test_frozen_weights_survive_inference_mode():
    layer = LipschitzLinear(6, 4).requires_grad_(False)
    with torch.inference_mode():
        context = frozen(layer)
        context.__enter__()
    x = torch.rand(3, 6, requires_grad=True)
    layer(x).sum().backward()
    context.__exit__(None, None, None)
    assert x.grad is not None


@pytest.mark.parametrize("factor", [2.0, 5.0, 10.0, 1e-3])
@pytest.mark.parametrize("layers", [1, 2, 4, 7])
def test_radius_is_the_root_rounded_down(factor, layers):
    radius = layer_radius(factor, layers)
    assert radius == pytest.approx(factor ** (1 / layers), rel=2e-7)
    # Exactly, in rational arithmetic, with each row one float32 rounding above its radius.
    from fractions import Fraction

    assert (Fraction(radius) * Fraction(ROUNDING)) ** layers <= Fraction(factor)


def test_sequential_shares_the_bound_at_any_depth():
    inner = nn.Sequential(LipschitzLinear(8, 8, group_size=2), GroupSort(4))
    net = LipschitzSequential(inner, LipschitzLinear(8, 3), lipschitz=9.0)
    assert [layer.lipschitz for layer in lipschitz_layers(net)] == [layer_radius(9.0, 2)] * 2
    assert net.lipschitz == 9.0
    for layer in lipschitz_layers(net):
        norm = layer.weight.abs().sum(1)
        assert bool((norm < layer.lipschitz).all())
        assert bool((norm > 0.9 * layer.lipschitz).all())
    assert "lipschitz=9" in repr(net)


def test_scaling_a_radius_scales_the_projection():
    layer = grown(LipschitzLinear(30, 6))
    before = layer.projected_weight().detach()
    set_lipschitz([layer], 3.0)
    torch.testing.assert_close(layer.projected_weight().detach(), 3 * before)


def test_observed_ratios_stay_below_the_bound():
    net = encoder()
    for layer in lipschitz_layers(net):
        grown(layer)
    net.double()
    x, y = torch.rand(2, 500, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        moved = (net(x) - net(y)).abs().amax(1)
    distance = (x - y).abs().amax((1, 2, 3))
    assert bool((moved <= 5.0 * distance).all())


@pytest.mark.parametrize("dim", [-1, 1, -2])
def test_group_sort_module(dim):
    x = torch.randn(2, 4, 6)
    assert torch.equal(GroupSort(2, dim)(x), reference.group_sort(x, 2, dim))
    assert repr(GroupSort(2, dim)) == f"GroupSort(group_size=2, dim={dim})"


def test_compiles_in_one_graph():
    net = encoder()
    for layer in lipschitz_layers(net):
        grown(layer)
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    got = torch.autograd.grad(compiled(x).square().sum(), [x, *net.parameters()])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(nn.Linear(4, 6), GroupSort(2)), (5, 4)),
        (nn.Sequential(nn.Linear(4, 6), GroupSort(3)), (5, 4)),
        (LipschitzLinear(4, 6, group_size=3), (5, 4)),
        (LipschitzConv2d(1, 4, 3, group_size=2), (5, 1, 6, 6)),
    ],
)
def test_a_batch_of_any_size_is_exported_and_compiled(net, shape):
    """Recorded gradients, too, leave the size open."""
    x = torch.rand(shape)
    size = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: size},)).module()
    other = torch.rand(9, *shape[1:])
    torch.testing.assert_close(program(other), net(other))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(other), net(other))


def test_exports():
    net = encoder().eval()
    x = torch.rand(3, 1, 8, 8)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x))


def test_data_parallel_replicas_compute_the_same():
    net = encoder().train()
    x = torch.rand(4, 1, 8, 8)
    wrapped = nn.DataParallel(net)  # without GPUs it calls the module itself
    assert torch.equal(wrapped(x), net(x))


def test_device_and_dtype_arguments():
    layer = LipschitzLinear(4, 2, device="meta", dtype=torch.float64)
    assert layer.weight.is_meta
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.rand(3, 4, dtype=torch.float64)).dtype == torch.float64
    assert not layer.threshold.any()


def test_repr_names_the_arguments():
    assert repr(LipschitzLinear(4, 6, lipschitz=1.5, group_size=2)) == (
        "LipschitzLinear(in_features=4, out_features=6, bias=True, lipschitz=1.5, group_size=2)"
    )
    assert repr(LipschitzConv2d(1, 4, 3, 2, (1, 0), bias=False)) == (
        "LipschitzConv2d(1, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 0), bias=False, "
        "lipschitz=1, group_size=None)"
    )


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: LipschitzLinear(0, 2), ValueError, "in_features must be at least 1, got 0"),
        (lambda: LipschitzLinear(2, 2.0), TypeError, "out_features must be an int"),
        (lambda: LipschitzLinear(2, 3, group_size=2), ValueError, "group_size must divide"),
        (lambda: LipschitzLinear(2, 2, lipschitz=0), ValueError, "lipschitz must be positive"),
        (lambda: LipschitzConv2d(1, 2, (3, 3, 3)), ValueError, "kernel_size must be an int or a"),
        (lambda: LipschitzConv2d(1, 2, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: LipschitzConv2d(1, 2, 3, padding=-1), ValueError, "padding must be at least 0"),
        (lambda: LipschitzConv2d(1, 2, 3, padding="same"), TypeError, "padding must be an int"),
        (lambda: LipschitzSequential(nn.Flatten(), lipschitz=1.0), ValueError, "at least one"),
        (lambda: LipschitzSequential(LipschitzLinear(2, 2), lipschitz=-1), ValueError, "positive"),
        (lambda: GroupSort(0), ValueError, "group_size must be at least 1, got 0"),
        (lambda: set_lipschitz([], 1.0), ValueError, "layers must hold at least one"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (LipschitzLinear(4, 2), torch.rand(3, 5), ValueError, "x must have 4 features"),
        (LipschitzLinear(4, 2), torch.rand(3, 4).double(), ValueError, "dtype and device"),
        (LipschitzLinear(4, 2), torch.ones(3, 4, dtype=torch.int64), TypeError, "floating point"),
        (LipschitzConv2d(3, 2, 3), torch.rand(3, 8, 8), ValueError, "x must have 4 dimensions"),
        (LipschitzConv2d(3, 2, 3), torch.rand(1, 1, 8, 8), ValueError, "x must have 3 channels"),
        (GroupSort(2), torch.rand(3), ValueError, "group_size must divide"),
        (GroupSort(2, 1), torch.rand(4), ValueError, r"dim must be in \[-1, 1\), got 1"),
    ],
)
def test_bad_inputs(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer(x)
