"""Log-likelihoods and importance statistics on every CPU backend, against scipy and float64."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import assert_as_accurate
from scipy import integrate, special, stats

import lipvae
from lipvae import ops, reference
from lipvae.functional import importance_log_likelihood, importance_statistics
from lipvae.statistics import STATISTICS, ImportanceAccumulator

BACKENDS = ["reference", "cpp"]
FAMILIES = list(reference.FAMILIES)
SHAPES = [(1, 1, 1), (3, 2, 7), (5, 3, 64), (4, 2, 785)]


def problem(
    family: str, shape: tuple[int, int, int], dtype: torch.dtype, scale: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    k, b, d = shape
    parameters = scale * torch.randn(
        k, b, reference.FAMILIES[family].parameters_per_dim * d, dtype=torch.float64
    )
    if family in ("gaussian", "discretized_logistic"):
        parameters[..., :d] = torch.rand(k, b, d)
        parameters[..., d:] = parameters[..., d:].clamp(-5, 2)
    target = torch.randint(0, 256, (b, d)).double() / 255
    return parameters.to(dtype), target.to(dtype)


def test_bernoulli_is_scipys() -> None:
    logits, _ = problem("bernoulli", (4, 3, 10), torch.float64)
    x = torch.randint(0, 2, (3, 10)).double()
    expected = stats.bernoulli.logpmf(x.numpy(), special.expit(logits.numpy())).sum(-1)
    np.testing.assert_allclose(reference.importance(logits, x, "bernoulli"), expected, rtol=1e-12)


def test_gaussian_is_scipys() -> None:
    parameters, x = problem("gaussian", (4, 3, 10), torch.float64)
    mean, scale = parameters[..., :10].numpy(), parameters[..., 10:].exp().numpy()
    expected = stats.norm.logpdf(x.numpy(), mean, scale).sum(-1)
    np.testing.assert_allclose(
        reference.importance(parameters, x, "gaussian"), expected, rtol=1e-12
    )


@pytest.mark.parametrize("logit", [-30.0, -2.0, -0.06, -0.04, 0.0, 1e-3, 0.05, 0.3, 8.0])
def test_continuous_bernoulli_integrates_to_one(logit: float) -> None:
    def density(x: float) -> float:
        value = reference.importance(
            torch.tensor([[[logit]]], dtype=torch.float64),
            torch.tensor([[x]], dtype=torch.float64),
            "continuous_bernoulli",
        )
        return math.exp(float(value))

    assert integrate.quad(density, 0, 1, epsabs=1e-12, epsrel=1e-12)[0] == pytest.approx(
        1, abs=1e-10
    )


def test_discretized_logistic_sums_to_one_and_is_scipys() -> None:
    levels = torch.arange(256, dtype=torch.float64).unsqueeze(0) / 255
    for mean, log_scale in ((0.3, -3.0), (0.99, -6.0), (-0.2, 0.5)):
        parameters = torch.tensor([mean, log_scale], dtype=torch.float64)
        logs = torch.stack(
            [
                reference.importance(parameters.view(1, 1, 2), x.view(1, 1), "discretized_logistic")
                for x in levels[0]
            ]
        )
        assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-12)
        cdf = stats.logistic(mean, math.exp(log_scale)).cdf
        inner = levels[0, 1:-1].numpy()
        masses = cdf(inner + 1 / 510) - cdf(inner - 1 / 510)
        kept = masses > 1e-9
        np.testing.assert_allclose(logs[1:-1].flatten().exp()[kept], masses[kept], rtol=1e-6)


def test_categorical_is_cross_entropy() -> None:
    parameters, x = problem("categorical256", (2, 3, 5), torch.float64)
    logits = parameters.view(2, 3, 256, 5)
    level = (x * 255).round().long()
    for k in range(2):
        expected = -torch.nn.functional.cross_entropy(logits[k], level, reduction="none").sum(-1)
        got = reference.importance(parameters, x, "categorical256")[k]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_gradient_is_autograds(family: str) -> None:
    parameters, target = problem(family, (3, 2, 50), torch.float64)
    if family == "continuous_bernoulli":
        parameters[0] *= 1e-2  # into the series about 0
    parameters.requires_grad_()
    grad = torch.randn(3, 2, dtype=torch.float64)
    (auto,) = torch.autograd.grad(
        reference.importance(parameters, target, family), parameters, grad
    )
    written = reference.importance_backward(grad, parameters.detach(), target, family)
    torch.testing.assert_close(written, auto, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_against_truth(backend: str, family: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        parameters, target = problem(family, shape, dtype)
        parameters.requires_grad_()
        grad = torch.randn(shape[:2], dtype=dtype)
        with lipvae.backend(backend):
            got = importance_log_likelihood(parameters, target, family)
            (got_grad,) = torch.autograd.grad(got, parameters, grad)
        wide, wide_target, plain = (
            parameters.detach().double(),
            target.double(),
            parameters.detach(),
        )
        truth = reference.importance(wide, wide_target, family)
        truth_grad = reference.importance_backward(grad.double(), wide, wide_target, family)
        same = reference.importance(plain, target, family)
        same_grad = reference.importance_backward(grad, plain, target, family)
        assert_as_accurate("importance", got.detach(), truth, same)
        assert_as_accurate("importance", got_grad, truth_grad, same_grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 100.0, 1e4])
@pytest.mark.parametrize("family", ["bernoulli", "continuous_bernoulli", "categorical256"])
def test_extreme_logits(backend: str, family: str, scale: float) -> None:
    parameters, target = problem(family, (3, 2, 300), torch.float32, scale)
    with lipvae.backend(backend):
        got = importance_log_likelihood(parameters, target, family)
    truth = reference.importance(parameters.double(), target.double(), family)
    same = reference.importance(parameters, target, family)
    assert_as_accurate("importance", got, truth, same)


@pytest.mark.parametrize("size", [4, 9, 14, 16.6, 17, 30, 80, 86, 87, 88, 100, 180, 300, 355, 700])
def test_bernoulli_of_confident_logits(size: float) -> None:
    """Each row keeps its own relative precision: the sure one, the one that errs, others."""
    target = torch.randint(0, 2, (2, 784)).float()
    sure = size * (2 * target - 1)
    one_wrong = sure.clone()
    one_wrong[:, 5] *= -1
    logits = torch.stack([sure, one_wrong, 3 * torch.randn(2, 784), 3 * torch.randn(2, 784)])
    logits[3, :, 700] = -size
    with lipvae.backend("cpp"):
        got = importance_log_likelihood(logits, target)
    truth = reference.importance(logits.double(), target.double())
    torch.testing.assert_close(got.double(), truth, rtol=16 * 2**-23, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_shows(backend: str, bad: float) -> None:
    logits, target = torch.randn(3, 2, 100), torch.rand(2, 100)
    logits[1, 1, 40] = bad
    with lipvae.backend(backend):
        got = importance_log_likelihood(logits, target)
    assert got.isfinite().sum() == 5
    assert not got[1, 1].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_does_not_depend_on_its_neighbours(backend: str) -> None:
    for family in FAMILIES:
        parameters, target = problem(family, (5, 4, 100), torch.float32)
        with lipvae.backend(backend):
            whole = importance_log_likelihood(parameters, target, family)
            for k in range(5):
                for b in range(4):
                    one = importance_log_likelihood(
                        parameters[k : k + 1, b : b + 1], target[b : b + 1], family
                    )
                    if backend == "cpp":
                        assert torch.equal(one[0, 0], whole[k, b])
                    else:
                        torch.testing.assert_close(one[0, 0], whole[k, b])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient(backend: str, family: str) -> None:
    parameters, target = problem(family, (2, 2, 3), torch.float64)
    if family == "discretized_logistic":
        target = target * 0.9 + 0.05  # finite differences must not cross into an outer bin
    parameters.requires_grad_()
    with lipvae.backend(backend):
        assert torch.autograd.gradcheck(
            lambda p: importance_log_likelihood(p, target, family), parameters, atol=1e-4
        )


def test_target_gradient_comes_from_the_reference() -> None:
    parameters, target = problem("gaussian", (2, 2, 3), torch.float64)
    target.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: importance_log_likelihood(parameters, x, "gaussian"), target
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_importance_linear_is_the_composition(backend: str, family: str) -> None:
    count = reference.FAMILIES[family].parameters_per_dim
    k, b, h, d = 130, 2, 16, 9
    hidden, weight = torch.randn(k, b, h), torch.randn(count * d, h) / 4
    bias, target = torch.randn(count * d), torch.randint(0, 256, (b, d)) / 255
    with lipvae.backend(backend):
        got = ops.importance_linear(hidden, weight, bias, target, family)
        wide = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
        truth = reference.importance(wide, target.double(), family)
        same = reference.importance(
            torch.nn.functional.linear(hidden, weight, bias), target, family
        )
        assert_as_accurate("importance_linear", got, truth, same)
        leaf = hidden.clone().requires_grad_()
        out = ops.importance_linear(leaf, weight, bias, target, family)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert grad.abs().sum() > 0
        assert ops.importance_linear(hidden[:, :0], weight, bias, target[:0], family).shape == (
            k,
            0,
        )


@pytest.mark.parametrize(
    ("family", "shape", "largest"),
    [
        ("bernoulli", (40, 3, 10), 30 * 10),  # as many as the cache holds, in parts of like size
        ("bernoulli", (40, 3, 100), 6 * 100),  # and as many rows as pay
        ("gaussian", (40, 3, 150), 3 * 300),  # and no more than fit
        ("categorical256", (4, 3, 5), 3 * 1280),
        ("bernoulli", (0, 3, 10), 0),
    ],
)
def test_importance_linear_by_torchs_product_on_a_device(
    family: str, shape: tuple[int, int, int], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["lipvae.ops.importance_linear"]
    limits = {"CACHED_NUMBERS": 350, "LEAST_ROWS": 8, "MOST_NUMBERS": 1000}
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)
    made: list[int] = []

    def linear(*arguments: torch.Tensor) -> torch.Tensor:
        made.append(torch.nn.functional.linear(*arguments).numel())
        return torch.nn.functional.linear(*arguments)

    monkeypatch.setattr(module, "linear", linear)
    k, b, d = shape
    count = reference.FAMILIES[family].parameters_per_dim
    hidden, weight, bias = torch.randn(k, b, 6), torch.randn(count * d, 6), torch.randn(count * d)
    weight[d:], bias[d:] = 0.1 * weight[d:], 0.1 * bias[d:]
    target = torch.randint(0, 256, (b, d)) / 255
    wide = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    truth = reference.importance(wide, target.double(), family)
    got = module._by_samples(hidden, weight, bias, target, family)
    assert_as_accurate("importance_linear", got, truth)
    assert max(made) == largest


@pytest.mark.parametrize("d", [1024, 1025, 3072])
def test_importance_linear_of_large_images(d: int) -> None:
    hidden, weight, bias = torch.randn(3, 2, 16), torch.randn(d, 16) / 4, torch.randn(d)
    target = torch.rand(2, d)
    got = ops.importance_linear(hidden, weight, bias, target, "bernoulli")
    wide = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    truth = reference.importance(wide, target.double())
    same = reference.importance(torch.nn.functional.linear(hidden, weight, bias), target)
    assert_as_accurate("importance_linear", got, truth, same)


@pytest.mark.parametrize("d", [784, 1500])
def test_importance_linear_knows_no_neighbours(d: int) -> None:
    hidden, weight, bias = torch.randn(150, 5, 32), torch.randn(d, 32) / 6, torch.randn(d)
    target = torch.rand(5, d)
    whole = ops.importance_linear(hidden, weight, bias, target, "bernoulli")
    assert whole.is_contiguous()
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = ops.importance_linear(hidden[:, order], weight, bias, target[order], "bernoulli")
    assert torch.equal(moved, whole[:, order])
    for i in range(5):
        image = slice(i, i + 1)
        alone = ops.importance_linear(hidden[:, image], weight, bias, target[image], "bernoulli")
        assert torch.equal(alone, whole[:, image])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_are_their_definitions(backend: str, dtype: torch.dtype) -> None:
    """Equation (6), written with numpy and scipy."""
    ll, prior, posterior = (torch.randn(6, 4, dtype=torch.float64) * 5 for _ in range(3))
    ll = ll.to(dtype).double()
    log_weight = (ll + prior - posterior).numpy()
    weight = np.exp(log_weight)
    expected = {
        "log_likelihood_mean": ll.numpy().mean(0),
        "hole_indicator": ll.numpy().std(0, ddof=1),
        "stds_of_lls": log_weight.std(0, ddof=1),
        "is_log_likelihood": special.logsumexp(log_weight, 0) - math.log(6),
        "elbo": log_weight.mean(0),
        "kl": (posterior - prior).numpy().mean(0),
        "ess": weight.sum(0) ** 2 / (weight**2).sum(0),
    }
    reference_values = reference.importance_statistics(ll, prior, posterior)
    for chunk in (1, 2, 4, 6):
        accumulator = ImportanceAccumulator()
        with lipvae.backend(backend):
            for start in range(0, 6, chunk):
                some = slice(start, start + chunk)
                accumulator.update(ll[some].to(dtype), (prior - posterior)[some])
        streamed = accumulator.statistics()
        assert streamed.num_samples == 6
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(streamed, name), value, rtol=1e-10, err_msg=name)
            np.testing.assert_allclose(reference_values[name], value, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_survive_raw_log_likelihoods_of_any_size(backend: str) -> None:
    ll = torch.tensor([[-1e30, -1e5, -math.inf], [-1e30, -1e5 - 3, -2.0]], dtype=torch.float64)
    zero = torch.zeros_like(ll)
    accumulator = ImportanceAccumulator()
    with lipvae.backend(backend):
        for parts in zip(ll.split(1), zero.split(1), strict=True):
            accumulator.update(*parts)
    found = accumulator.statistics()
    assert found.is_log_likelihood.tolist() == pytest.approx(
        [-1e30, -1e5 + math.log1p(math.exp(-3)) - math.log(2), -2 - math.log(2)]
    )
    assert found.ess.tolist() == pytest.approx(
        [2.0, (1 + math.exp(-3)) ** 2 / (1 + math.exp(-6)), 1]
    )


def test_statistics_have_a_gradient() -> None:
    ll, ratio = torch.randn(2, 5, 3, dtype=torch.float64).requires_grad_()

    def statistics(ll: torch.Tensor, ratio: torch.Tensor) -> tuple[torch.Tensor, ...]:
        accumulator = ImportanceAccumulator()
        accumulator.update(ll[:2], ratio[:2])
        accumulator.update(ll[2:], ratio[2:])
        found = accumulator.statistics()
        return found.hole_indicator, found.stds_of_lls, found.is_log_likelihood, found.ess

    assert torch.autograd.gradcheck(statistics, (ll, ratio))


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_asked_for_early_do_not_change(backend: str) -> None:
    ll, ratio = torch.randn(2, 6, 3)
    accumulator = ImportanceAccumulator()
    with lipvae.backend(backend):
        accumulator.update(ll[:2], ratio[:2])
        early = accumulator.statistics()
        before = early.elbo.clone()
        accumulator.update(ll[2:], ratio[2:])
    assert torch.equal(early.elbo, before)
    assert early.num_samples == 2


def test_statistics_of_an_input_do_not_depend_on_its_neighbours() -> None:
    ll, ratio = torch.randn(2, 9, 5)
    with lipvae.backend("cpp"):
        whole = ImportanceAccumulator()
        whole.update(ll, ratio)
        for i in range(5):
            alone = ImportanceAccumulator()
            alone.update(ll[:, i : i + 1], ratio[:, i : i + 1])
            for name in STATISTICS:
                column = getattr(whole.statistics(), name)[i : i + 1]
                assert torch.equal(getattr(alone.statistics(), name), column), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_sample_has_no_spread_and_none_is_an_error(backend: str) -> None:
    accumulator = ImportanceAccumulator()
    with pytest.raises(ValueError, match="no samples were added"):
        accumulator.statistics()
    one = torch.zeros(1, 2)
    with lipvae.backend(backend):
        accumulator.update(one, one)
    assert accumulator.statistics().hole_indicator.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_importance_statistics(backend: str) -> None:
    parameters, target = problem("bernoulli", (8, 3, 20), torch.float64)
    prior, posterior = torch.randn(2, 8, 3, dtype=torch.float64)
    with lipvae.backend(backend):
        got = importance_statistics(parameters, target, prior, posterior)
    ll = reference.importance(parameters, target)
    for name, value in reference.importance_statistics(ll, prior, posterior).items():
        torch.testing.assert_close(getattr(got, name), value)


def test_bad_arguments() -> None:
    parameters, target = torch.zeros(2, 3, 8), torch.zeros(3, 8)
    with pytest.raises(ValueError, match=r"likelihood must be one of bernoulli, .* got 'poisson'"):
        importance_log_likelihood(parameters, target, "poisson")
    with pytest.raises(ValueError, match=r"parameters must be \[K, B, 2 \* D\]"):
        importance_log_likelihood(parameters, target, "gaussian")
    with pytest.raises(ValueError, match="target must have the dtype and device of parameters"):
        importance_log_likelihood(parameters, target.double())
    with pytest.raises(ValueError, match="parameters must have 3 dimensions"):
        importance_log_likelihood(parameters[0], target)
    with pytest.raises(ValueError, match="got K = 0"):
        importance_statistics(parameters[:0], target, torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"log_prior must have shape \(2, 3\)"):
        importance_statistics(parameters, target, torch.zeros(2, 1), torch.zeros(2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend: str) -> None:
    with lipvae.backend(backend):
        for family in FAMILIES:
            parameters, target = problem(family, (2, 3, 6), torch.float32)
            parameters.requires_grad_()
            torch.library.opcheck(torch.ops.lipvae.importance.default, (parameters, target, family))
            compiled = torch.compile(importance_log_likelihood, fullgraph=True, backend="aot_eager")
            out, eager = (
                f(parameters, target, family) for f in (compiled, importance_log_likelihood)
            )
            assert torch.equal(out, eager)
            assert torch.equal(
                torch.autograd.grad(out.sum(), parameters)[0],
                torch.autograd.grad(eager.sum(), parameters)[0],
            )
        hidden, weight, bias = torch.randn(2, 3, 5), torch.randn(6, 5), torch.randn(6)
        torch.library.opcheck(
            torch.ops.lipvae.importance_linear.default,
            (hidden, weight, bias, torch.rand(3, 6), "bernoulli"),
        )


def test_threads_with_small_stacks_run_the_fused_layer() -> None:
    program = """
import threading, torch, lipvae
torch.set_num_threads(1)
def work():
    hidden, weight, target = torch.randn(64, 8, 512), torch.randn(784, 512), torch.rand(8, 784)
    print(tuple(lipvae.ops.importance_linear(hidden, weight, None, target, "bernoulli").shape))
threading.stack_size(256 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(64, 8)\n"
