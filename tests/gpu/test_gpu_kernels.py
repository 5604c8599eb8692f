"""The Triton kernels on a real GPU: parity with float64 truth, graphs, bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import assert_as_accurate

import lipvae
from lipvae import _backend, reference

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FAMILIES = list(reference.FAMILIES)


def skip_where_torch_multiplies(dtype: torch.dtype) -> None:
    """Products of halves that nobody gets are not judged: they may take minutes on such a GPU."""
    why = _backend.drawback("lipschitz_linear", torch.device("cuda", 0), dtype)
    if why is not None and dtype != torch.float32:
        pytest.skip(why)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to("cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 27), (512, 784), (300, 4096), (7, 12000), (3, 40000)])
def test_l1_ball(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from lipvae.kernels.l1_ball import l1_ball_backward, l1_ball_forward

    weight = randn(*shape, dtype=dtype)
    weight[::3] /= 1e5
    wide = weight.double()
    projected, threshold = l1_ball_forward(weight, 1.1)
    truth = reference.l1_ball_threshold(wide, 1.1)
    assert torch.allclose(threshold, truth, rtol=1e-13)
    assert_as_accurate("l1_ball", projected, reference.project_l1_ball(wide, 1.1))
    if dtype == torch.float32:
        assert (projected.double().abs().sum(1) <= 1.1 * (1 + 2**-23)).all()
    again, same = l1_ball_forward(weight, 1.1, warm=threshold * 1.5)
    assert torch.allclose(same, threshold, rtol=1e-14)
    assert torch.allclose(again, projected, rtol=2 * torch.finfo(dtype).eps)
    grad = randn(*shape, dtype=dtype)
    truth_grad = reference.project_l1_ball_backward(grad.double(), wide, 1.1)
    assert_as_accurate("l1_ball", l1_ball_backward(grad, weight, threshold), truth_grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize(("shape", "dim"), [((129, 1000), 1), ((512, 1024), 1), ((5, 64, 9, 7), 1)])
def test_group_sort(shape: tuple[int, ...], dim: int, group_size: int, dtype: torch.dtype) -> None:
    from lipvae.kernels.group_sort import group_sort_backward, group_sort_forward

    x, grad = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    y, code = group_sort_forward(x, group_size, dim)
    truth, truth_code = reference.group_sort_network(x, group_size, dim)
    assert torch.equal(y, truth)
    assert code is not None
    assert torch.equal(code, truth_code)
    assert torch.equal(
        group_sort_backward(grad, code, group_size, dim),
        reference.group_sort_network_backward(grad, truth_code, group_size, dim),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("projecting", [True, False], ids=["projecting", "projected"])
@pytest.mark.parametrize("group_size", [None, 2, 4, 8])
@pytest.mark.parametrize(
    "shape", [(1, 784, 64), (128, 784, 512), (1000, 520, 1032), (300, 500, 200), (130, 201, 40)]
)
def test_lipschitz_linear(
    shape: tuple[int, int, int], group_size: int | None, projecting: bool, dtype: torch.dtype
) -> None:
    from lipvae.kernels.lipschitz_linear import (
        lipschitz_linear_backward,
        lipschitz_linear_forward,
    )

    skip_where_torch_multiplies(dtype)
    rows, inner, out = shape
    x, weight, bias = (
        randn(rows, inner, dtype=dtype),
        randn(out, inner, dtype=dtype),
        randn(out, dtype=dtype),
    )
    grad = randn(rows, out, dtype=dtype)
    how = {"projecting": projecting}
    unsorted, _, _ = lipschitz_linear_forward(x, weight, bias, 3.0, None, **how)
    y, threshold, code = lipschitz_linear_forward(x, weight, bias, 3.0, group_size, **how)
    grads = lipschitz_linear_backward(grad, x, weight, threshold, code, group_size, **how)
    wide = (x.double(), weight.double(), bias.double())
    assert_as_accurate("lipschitz_linear", unsorted, reference.lipschitz_linear(*wide, 3.0, None))
    grad_z = grad.double()
    if group_size is not None:
        assert code is not None
        grad_z = reference.group_sort_network_backward(grad_z, code, group_size)
        # Tiles may differ with and without the sort, and with them the last bits.
        truth = reference.lipschitz_linear(*wide, 3.0, group_size)
        assert_as_accurate("lipschitz_linear", y, truth)
    truths = (
        grad_z @ reference.project_l1_ball(wide[1], 3.0),
        reference.project_l1_ball_backward(grad_z.t() @ wide[0], wide[1], 3.0),
        grad_z.sum(0),
    )
    for got, true in zip(grads, truths, strict=True):
        assert got is not None
        assert_as_accurate("lipschitz_linear", got, true)


def float32_layer(x: torch.Tensor) -> torch.Tensor:
    """The layer and its gradients as float32 goes by default, one after the other."""
    weight, bias = (torch.linspace(-1, 1, n, device="cuda") for n in (96 * 200, 96))
    inputs = [t.detach().requires_grad_() for t in (x, weight.view(96, 200).sin(), bias)]
    y, _ = lipvae.ops.lipschitz_linear(*inputs, 3.0, 2)
    grads = torch.autograd.grad(y, inputs, y.detach())
    return torch.cat([t.detach().flatten() for t in (y, *grads)])


def float32_head(x: torch.Tensor) -> torch.Tensor:
    """The fused head as float32 goes by default: [6 * 50, 200] -> [6, 50]."""
    weight = torch.linspace(-2, 2, 784 * 200, device="cuda").view(784, 200).cos() / 12
    target = torch.linspace(0, 1, 50 * 784, device="cuda").view(50, 784)
    return lipvae.ops.importance_linear(x.view(6, 50, 200), weight, None, target, "bernoulli")


def test_float32_as_it_goes_by_default() -> None:
    x = randn(300, 200)
    weight, bias = (torch.linspace(-1, 1, n, device="cuda") for n in (96 * 200, 96))
    wide = [t.double().requires_grad_() for t in (x, weight.view(96, 200).sin(), bias)]
    truth = reference.lipschitz_linear(*wide, 3.0, 2)
    got = float32_layer(x)
    y = got[: truth.numel()].view_as(truth)
    assert_as_accurate("lipschitz_linear", y, truth.detach())
    grads = torch.autograd.grad(truth, wide, y.double())
    parts = got[truth.numel() :].split([g.numel() for g in grads])
    for part, grad in zip(parts, grads, strict=True):
        assert_as_accurate("lipschitz_linear", part.view_as(grad), grad)

    weight = torch.linspace(-2, 2, 784 * 200, device="cuda").view(784, 200).cos() / 12
    target = torch.linspace(0, 1, 50 * 784, device="cuda").view(50, 784)
    logits = x.double().view(6, 50, 200) @ weight.double().t()
    exact = reference.importance(logits, target.double(), "bernoulli")
    assert_as_accurate("importance_linear", float32_head(x), exact)


@pytest.mark.parametrize("run", [float32_layer, float32_head])
def test_float32_can_be_captured_as_it_goes_by_default(
    run: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    x, other = randn(300, 200), randn(300, 200)
    assert torch.equal(captured(run, x, other), run(other))


def test_tf32_is_used_only_where_torch_allows_it() -> None:
    from lipvae.kernels.lipschitz_linear import lipschitz_linear_forward

    x, weight = randn(256, 1024), randn(256, 1024)
    truth = reference.lipschitz_linear(x.double(), weight.double(), None, 30.0, 2)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        y, _, _ = lipschitz_linear_forward(x, weight, None, 30.0, 2)
        assert (y - truth).abs().max() / truth.abs().max() < 2e-3
        torch.set_float32_matmul_precision("highest")
        y, _, _ = lipschitz_linear_forward(x, weight, None, 30.0, 2)
        assert_as_accurate("lipschitz_linear", y, truth)
    finally:
        torch.set_float32_matmul_precision(before)


def likelihood(
    family: str, k: int, b: int, d: int, dtype: torch.dtype, width: int = 200
) -> tuple[torch.Tensor, ...]:
    count = reference.FAMILIES[family].parameters_per_dim
    hidden = randn(k, b, width, dtype=dtype)
    weight = (randn(count * d, width) / 12).to(dtype)
    bias = randn(count * d, dtype=dtype)
    if count == 2:  # log-scales of several nats would take gradients beyond float16
        weight[d:] *= 0.2
        bias[d:] *= 0.2
    return hidden, weight, bias, (torch.randint(0, 256, (b, d)) / 255).cuda()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [200, 201, 500])
@pytest.mark.parametrize("family", FAMILIES)
def test_importance(family: str, width: int, dtype: torch.dtype) -> None:
    from lipvae.kernels.importance import importance_backward, importance_forward
    from lipvae.kernels.importance_linear import importance_linear_forward

    skip_where_torch_multiplies(dtype)
    k, b, d = (5, 3, 50) if family == "categorical256" else (33, 7, 784)
    hidden, weight, bias, target = likelihood(family, k, b, d, dtype, width)
    parameters = torch.nn.functional.linear(hidden, weight, bias)
    wide = parameters.double().requires_grad_()
    truth = reference.importance(wide, target.double(), family)
    grad = torch.rand(k, b, device="cuda")
    (truth_grad,) = torch.autograd.grad(truth, wide, grad.double())
    got = importance_forward(parameters, target, family)
    assert_as_accurate("importance", got, truth.detach())
    got_grad = importance_backward(grad, parameters, target, family)
    assert_as_accurate("importance", got_grad, truth_grad)
    exact = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    fused = importance_linear_forward(hidden, weight, bias, target, family)
    truth = reference.importance(exact, target.double(), family)
    assert_as_accurate("importance_linear", fused, truth)


@pytest.mark.parametrize("pixels", [40, 41])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_depend_on_the_row_alone(family: str, pixels: int) -> None:
    from lipvae.kernels.importance_linear import importance_linear_forward

    hidden, weight, bias, target = likelihood(family, 6, 5, pixels, torch.bfloat16)
    whole = importance_linear_forward(hidden, weight, bias, target, family)
    for i in range(5):
        part = slice(i, i + 1)
        one = importance_linear_forward(hidden[2:3, part], weight, bias, target[part], family)
        assert torch.equal(one, whole[2:3, part])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (130, 9, 10), (33, 64, 500)])
def test_normal_samples(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    from lipvae.kernels.normal_samples import normal_samples

    k, b, m = shape
    loc, log_variance, noise = randn(b, m).double(), randn(b, m).double(), randn(k, m).double()
    z, ratio = normal_samples(loc, log_variance, noise, dtype)
    truth, truth_ratio = reference.normal_samples(loc, log_variance, noise)
    assert_as_accurate("normal_samples", z, truth)
    assert_as_accurate("normal_samples", ratio, truth_ratio)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 100, 300])
def test_importance_statistics(chunk: int, dtype: torch.dtype) -> None:
    from lipvae.statistics import ImportanceAccumulator

    ll, ratio = 5 * randn(300, 21, dtype=dtype), 2 * randn(300, 21).double() + 3
    accumulator = ImportanceAccumulator()
    for part in zip(ll.split(chunk), ratio.split(chunk), strict=True):
        accumulator.update(*part)
    found = accumulator.statistics()
    for name, truth in reference.importance_statistics(ll, ratio, torch.zeros_like(ratio)).items():
        assert_as_accurate("importance_statistics", getattr(found, name), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 3, 10, 200, 1000])
def test_vmf(dim: int, dtype: torch.dtype) -> None:
    from lipvae.kernels.vmf import vmf_angle, vmf_forward
    from lipvae.ops.vmf_density import moments

    loc = torch.nn.functional.normalize(torch.randn(6, dim), dim=-1).to("cuda", dtype)
    kappa = torch.tensor([0, 1e-3, 0.8, 12, 100, 3e3]).to("cuda", dtype)
    seed = torch.tensor([-5], device="cuda")
    x, t = vmf_forward(loc, kappa, 50, seed, 2**32 - 100, False)
    arguments = (loc.cpu().float(), kappa.cpu().float(), 50, seed.cpu(), 2**32 - 100, False)
    truth, truth_t = reference.sample_vmf(*arguments)
    # The device's logarithm may differ from the host's by a rounding, and so turn an attempt.
    same = ((t.cpu() - truth_t).abs() <= 1e-11 * truth_t).float()
    assert same.mean() >= 0.99
    error = (x.cpu().float() - truth).abs().amax(-1) * same
    assert error.max() <= max(1e-6, torch.finfo(dtype).eps / 2)
    if dtype == torch.float32:
        wide = kappa[1:].cpu().double()
        complement = moments(wide, dim).complement
        got = vmf_angle(truth_t[:, 1:].cuda(), wide.cuda(), complement.cuda(), dim)
        angle = reference.angle_derivative(truth_t[:, 1:], wide, complement, dim)
        assert torch.allclose(got.cpu(), angle, rtol=1e-11, atol=0)


def captured(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    """The result of a graph captured on x and replayed on other."""
    run(x)  # compiles
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    static = x.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = run(static)
    static.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_layer_can_be_captured(dtype: torch.dtype) -> None:
    from lipvae.kernels.lipschitz_linear import (
        lipschitz_linear_backward,
        lipschitz_linear_forward,
    )

    weight, bias = randn(512, 784, dtype=dtype), randn(512, dtype=dtype)

    def run(x: torch.Tensor) -> torch.Tensor:
        y, threshold, code = lipschitz_linear_forward(x, weight, bias, 1.0, 2)
        grads = lipschitz_linear_backward(y, x, weight, threshold, code, 2)
        return torch.cat([g.flatten().float() for g in (y, *grads) if g is not None])

    x, other = randn(128, 784, dtype=dtype), randn(128, 784, dtype=dtype)
    assert torch.equal(captured(run, x, other), run(other))


def test_samples_on_a_sphere_can_be_captured_with_their_gradient() -> None:
    seed = torch.tensor([7], device="cuda")  # a number would be copied, which no graph holds

    def run(loc: torch.Tensor) -> torch.Tensor:
        kappa = loc[:, 0].square() + 3
        inputs = [loc.detach().requires_grad_(), kappa.detach().requires_grad_()]
        x, _ = lipvae.ops.vmf(*inputs, 4, seed)
        grads = torch.autograd.grad(x, inputs, x)
        return torch.cat([g.flatten() for g in (x.detach(), *grads)])

    loc, other = (torch.nn.functional.normalize(randn(64, 10), dim=-1) for _ in range(2))
    assert torch.equal(captured(run, loc, other), run(other))


def test_a_gradient_keeps_the_backend_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipvae.kernels import group_sort as kernels

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("the reference was asked for")

    x = randn(64, 32).requires_grad_()
    with lipvae.backend("reference"):
        y = lipvae.functional.group_sort(x, 2)
        monkeypatch.setattr(kernels, "group_sort_backward", refuse)
        y.square().sum().backward()  # on a thread of autograd's
    assert x.grad is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_can_be_captured(family: str) -> None:
    from lipvae.kernels.importance_linear import importance_linear_forward

    hidden, weight, bias, target = likelihood(family, 4, 3, 30, torch.float16)

    def run(x: torch.Tensor) -> torch.Tensor:
        return importance_linear_forward(x, weight, bias, target, family)

    other = torch.randn_like(hidden)
    assert torch.equal(captured(run, hidden, other), run(other))


@pytest.mark.parametrize("architecture", ["fc", "conv"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_decoder_of_16_bits(dtype: torch.dtype, architecture: str) -> None:
    torch.manual_seed(0)
    hidden = (32, 32) if architecture == "fc" else (8, 16)
    model = lipvae.LipschitzVAE((1, 8, 8), 3, architecture, hidden).cuda()
    x = torch.rand(10, 1, 8, 8, device="cuda")
    low = lipvae.Scorer(model, num_samples=200, decoder_dtype=dtype)(x)
    full = lipvae.Scorer(model, num_samples=200)(x)
    assert not torch.equal(low["elbo"], full["elbo"])
    torch.testing.assert_close(low["elbo"], full["elbo"], rtol=0.02, atol=0.1)
    torch.testing.assert_close(low["kl"], full["kl"])


def test_autotuning_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipvae.kernels import _tuning
    from lipvae.kernels.lipschitz_linear import lipschitz_linear_forward

    monkeypatch.setattr(_tuning, "_measured", {})
    monkeypatch.setenv("LIPVAE_TRITON_AUTOTUNE", "1")
    x, weight = randn(256, 512), randn(256, 512)
    y, _, _ = lipschitz_linear_forward(x, weight, None, 1.0, 2)
    assert _tuning._measured
    truth = reference.lipschitz_linear(x.double(), weight.double(), None, 1.0, 2)
    assert_as_accurate("lipschitz_linear", y, truth)


def test_opcheck() -> None:
    x, weight = randn(16, 24).requires_grad_(), randn(32, 24).requires_grad_()
    parameters = randn(2, 3, 4).requires_grad_()
    target = torch.rand(3, 4, device="cuda")
    with lipvae.backend("triton"):
        for op, arguments in (
            (torch.ops.lipvae.l1_ball, (weight, 1.0, None)),
            (torch.ops.lipvae.group_sort, (weight, 4, 0, True)),
            (torch.ops.lipvae.lipschitz_linear, (x, weight, None, 1.0, 2, None, True)),
            (torch.ops.lipvae.importance, (parameters, target, "bernoulli")),
        ):
            torch.library.opcheck(op.default, arguments)
