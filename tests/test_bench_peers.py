"""The bench's peers compute what we compute: the time of a wrong peer says nothing."""

import math

import load_bench  # noqa: F401
import pytest
import torch

import lipvae
from bench import bench_importance, bench_l1_ball, bench_lipschitz_linear, bench_vmf
from bench.harness import Skip
from bench.peers import group_sort as group_sort_peers
from bench.peers import importance as importance_peers
from bench.peers import importance_statistics as statistics_peers
from bench.peers import l1_ball as l1_ball_peers
from bench.peers import lipschitz_linear as layer_peers
from bench.peers import normal_samples as normal_samples_peers
from bench.peers import pipeline
from bench.peers import vmf as vmf_peers
from bench.settings import Settings
from lipvae import reference
from lipvae.scoring import Scorer

QUICK = Settings(quick=True)


@pytest.mark.parametrize("kind", ["initial", "boundary", "heavy"])
def test_projection_peers_agree(kind):
    weight = bench_l1_ball.rows(kind, (32, 100), QUICK)
    truth = reference.project_l1_ball(weight.double(), bench_l1_ball.RADIUS)
    steps = l1_ball_peers.newton_steps(weight, bench_l1_ball.RADIUS)
    for got in (
        l1_ball_peers.sort_projection(weight, bench_l1_ball.RADIUS),
        l1_ball_peers.newton_projection(weight, bench_l1_ball.RADIUS, steps),
        l1_ball_peers.newton_projection_exact_gradient(weight, bench_l1_ball.RADIUS, steps),
    ):
        assert (got - truth).abs().max() < 2e-6


def test_rows_are_what_they_are_called():
    radius, shape = bench_l1_ball.RADIUS, (64, 200)
    norms = {
        kind: bench_l1_ball.rows(kind, shape, QUICK).abs().sum(1)
        for kind in ("initial", "boundary", "heavy", "tiny ball")
    }
    assert (norms["initial"] > 3 * radius).all()
    assert ((norms["boundary"] / radius - 1).abs() < 1.1e-3).all()
    assert 0 < (norms["boundary"] > radius).sum() < 64
    tiny = bench_l1_ball.rows("tiny ball", shape, QUICK)
    assert tiny.abs().max() == pytest.approx(1e7 * radius, rel=1e-5)
    # Heavy rows keep few entries, initial ones many.
    kept = {
        kind: (reference.project_l1_ball(bench_l1_ball.rows(kind, shape, QUICK), radius) != 0)
        .sum(1).double().mean()
        for kind in ("initial", "heavy")
    }  # fmt: skip
    assert kept["heavy"] < 0.5 * kept["initial"]


def test_newton_peer_has_the_exact_gradient():
    weight = bench_l1_ball.rows("heavy", (16, 50), QUICK).double().requires_grad_()
    grad = torch.randn(16, 50, dtype=torch.float64)
    steps = l1_ball_peers.newton_steps(weight.detach(), bench_l1_ball.RADIUS)
    y = l1_ball_peers.newton_projection_exact_gradient(weight, bench_l1_ball.RADIUS, steps)
    (got,) = torch.autograd.grad(y, weight, grad)
    truth = reference.project_l1_ball_backward(grad, weight.detach(), bench_l1_ball.RADIUS)
    torch.testing.assert_close(got, truth)


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_group_sort_peers_agree(group_size):
    x = torch.randn(6, 32)
    truth = reference.group_sort(x, group_size)
    assert torch.equal(group_sort_peers.torch_sort(x, group_size), truth)
    assert torch.equal(group_sort_peers.min_max(x, group_size), truth)


def test_deel_agrees():
    pytest.importorskip("deel.torchlip")
    x = torch.randn(6, 32)
    for group_size in (2, 4):
        truth = reference.group_sort(x, group_size)
        assert torch.equal(group_sort_peers.deel(group_size)(x), truth)


@pytest.mark.parametrize("family", list(reference.FAMILIES))
def test_importance_peers_agree(family):
    shape = (3, 2, 20)
    parameters, target = bench_importance.inputs(family, shape, QUICK)
    truth = reference.importance(parameters.double(), target.double(), family)
    got = importance_peers.PEERS[family](parameters, target)
    torch.testing.assert_close(got.double(), truth, rtol=2e-4, atol=1e-3)
    if family == "bernoulli":
        got = importance_peers.bernoulli_formula(parameters, target)
        torch.testing.assert_close(got.double(), truth, rtol=1e-6, atol=1e-5)


def test_samples_and_statistics_peers_agree():
    loc, log_variance, noise = torch.randn(3, 4), torch.randn(3, 4), torch.randn(5, 4)
    arguments = (loc.double(), log_variance.double(), noise.double())
    z, ratio = normal_samples_peers.eager(*arguments, torch.float64)
    truth, truth_ratio = reference.normal_samples(*arguments)
    torch.testing.assert_close(z, truth)
    torch.testing.assert_close(ratio, truth_ratio)
    ll = torch.randn(5, 3, dtype=torch.float64)
    found = statistics_peers.eager(ll, ratio)
    truths = reference.importance_statistics(ll, ratio, torch.zeros_like(ratio))
    for got, want in zip(found, truths.values(), strict=True):
        torch.testing.assert_close(got, want)


def test_layer_peers_agree():
    pytest.importorskip("deel.torchlip")
    weight = bench_l1_ball.rows("initial", (16, 30), QUICK)
    bias, x = torch.randn(16), torch.rand(5, 30)
    truth = reference.lipschitz_linear(x, weight, bias, bench_l1_ball.RADIUS, 2)
    steps = l1_ball_peers.newton_steps(weight, bench_l1_ball.RADIUS)
    for layer in (
        layer_peers.SortLayer(weight, bias, bench_l1_ball.RADIUS),
        layer_peers.NewtonLayer(weight, bias, bench_l1_ball.RADIUS, steps),
        *bench_lipschitz_linear.steps_apart(weight, bias)[:1],
    ):
        torch.testing.assert_close(layer(x), truth, rtol=1e-5, atol=1e-5)


def test_layers_one_step_apart_share_thresholds():
    first, second = bench_lipschitz_linear.steps_apart(torch.randn(4, 6), torch.zeros(4))
    first(torch.rand(2, 6))
    assert torch.equal(second.threshold, first.threshold)
    assert (first.threshold > 0).any()
    assert not torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("m", [3, 10])
def test_vmf_peers_follow_the_mean(m):
    kappa, n = 7.0, 20_000
    loc = torch.nn.functional.normalize(torch.randn(2, m), dim=-1)
    expected = vmf_peers.mean_along(m, kappa)
    if m == 3:
        assert expected == pytest.approx(1 / math.tanh(kappa) - 1 / kappa, rel=1e-9)
    wood = vmf_peers.wood_sample(loc, torch.full((2,), kappa), n)
    for drawn, mu in ((wood[:, 0], loc[0]), (wood[:, 1], loc[1])):
        assert (drawn.norm(dim=-1) - 1).abs().max() < 1e-5
        assert float((drawn @ mu.double()).mean()) == pytest.approx(expected, abs=0.01)
    scipy = vmf_peers.scipy_sample(loc[0], kappa, n)
    assert float((scipy @ loc[0].double()).mean()) == pytest.approx(expected, abs=0.01)


def test_vmf_is_left_out_where_there_is_no_sampler(monkeypatch):
    monkeypatch.delattr(lipvae.functional, "sample_vmf", raising=False)
    with pytest.raises(Skip, match="sample_vmf"):
        bench_vmf.sample_case(3, 1.0, QUICK)


def test_the_eager_pipeline_scores_like_the_scorer():
    torch.manual_seed(0)
    model = lipvae.LipschitzVAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,)).eval()
    x = torch.rand(4, 1, 8, 8)
    ours = Scorer(model, num_samples=4000)(x)
    eager = pipeline.eager_scores(model, x, 4000)
    assert eager.keys() == ours.keys()
    for name in ("log_likelihood", "elbo", "is_log_likelihood", "kl"):
        torch.testing.assert_close(eager[name].double(), ours[name], rtol=0.05, atol=0.1)
    for name in ("hole_indicator", "stds_of_lls"):
        torch.testing.assert_close(eager[name], ours[name], rtol=0.1, atol=0.05)
