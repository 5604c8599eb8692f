"""Models, training and scores on a real GPU: a CPU's numbers, graphs, mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipvae
from lipvae.nn import LipschitzLinear, frozen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


def test_two_captured_training_passes_do_not_share_memory() -> None:
    """Thresholds that a graph reads must not be freed by the next pass, or by another capture."""
    layer = LipschitzLinear(64, 32, group_size=2).cuda().train()
    x = torch.rand(16, 64, device="cuda")
    layer(x).sum().backward()
    graphs = []
    for _ in range(2):
        static = x.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            layer(static).sum().backward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(static)
            (grad,) = torch.autograd.grad(y, layer.weight, torch.ones_like(y))
        # Kept with its graph, y would keep gradient nodes of the capture's stream.
        graphs.append((graph, static, y.detach(), grad))
        del y
    torch.cuda.empty_cache()
    for graph, static, y, grad in graphs:
        static.copy_(torch.rand_like(x))
        graph.replay()
        torch.cuda.synchronize()
        want = layer(static)
        (want_grad,) = torch.autograd.grad(want, layer.weight, torch.ones_like(want))
        assert torch.equal(y, want)
        assert torch.equal(grad, want_grad)


@pytest.mark.parametrize("kind", ["lipschitz-fc", "lipschitz-conv", "sphere"])
def test_scores_are_those_of_a_cpu(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "sphere":
        model: lipvae.VAE = lipvae.HypersphericalVAE((1, 8, 8), 4, "fc", (32,))
    else:
        hidden = (32, 32) if kind.endswith("fc") else (8, 16)
        model = lipvae.LipschitzVAE((1, 8, 8), 4, kind.removeprefix("lipschitz-"), hidden)
    x = torch.rand(70, 1, 8, 8)
    on_cpu = lipvae.Scorer(model, num_samples=150)(x)
    allow = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        on_gpu = lipvae.Scorer(model.cuda(), num_samples=150)(x.cuda())
    finally:
        torch.backends.cudnn.allow_tf32 = allow
    for name, score in on_cpu.items():
        torch.testing.assert_close(on_gpu[name].cpu(), score, rtol=1e-3, atol=1e-3, msg=name)


def test_a_score_is_the_same_in_every_run() -> None:
    model = lipvae.LipschitzVAE((1, 16, 16), 4, "conv", (8, 16, 32)).cuda()
    x = torch.rand(20, 1, 16, 16, device="cuda")
    scorer = lipvae.Scorer(model, num_samples=64)
    first = scorer(x)
    for name, score in scorer(x).items():
        assert torch.equal(score, first[name]), name


def test_refinement_and_ensembles() -> None:
    models = [lipvae.LipschitzVAE((1, 8, 8), 3, "fc", (32,)).cuda() for _ in range(3)]
    x = torch.rand(9, 1, 8, 8, device="cuda")
    refined = lipvae.Scorer(models[0], num_samples=32, refine=2)(x)
    assert all(score.isfinite().all() for score in refined.values())
    found = lipvae.Scorer(lipvae.Ensemble(models), num_samples=32)(x)
    assert all(score.shape == (9,) for score in found.values())


def test_a_calibration_of_a_cpu_serves_a_gpu() -> None:
    model = lipvae.LipschitzVAE((1, 8, 8), 3, "fc", (32,))
    x = torch.rand(30, 1, 8, 8)
    names = ["typicality", "f_lip", "f_agg"]
    scorer = lipvae.Scorer(model, names, num_samples=32).calibrate(x)
    on_cpu = scorer(x[:5])
    model.cuda()
    for name, score in scorer(x[:5].cuda()).items():
        torch.testing.assert_close(score.cpu(), on_cpu[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_training_under_autocast(architecture: str, dtype: torch.dtype) -> None:
    hidden = (32,) if architecture == "fc" else (8, 16)
    model = lipvae.LipschitzVAE((1, 8, 8), 3, architecture, hidden).cuda()
    with torch.autocast("cuda", dtype):
        loss = -model.elbo(torch.rand(5, 1, 8, 8, device="cuda")).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    layer = nn.Sequential(nn.Linear(16, 8), LipschitzLinear(8, 4, group_size=2)).cuda()
    with torch.autocast("cuda", dtype):
        assert layer(torch.rand(3, 16, device="cuda")).dtype == torch.float32


def test_training_does_not_depend_on_where_noise_is_drawn() -> None:
    x = torch.rand(64, 1, 8, 8)
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = lipvae.LipschitzVAE((1, 8, 8), 3, "fc", (32,))
        history = lipvae.fit(model, x, epochs=2, batch_size=16, device=device, progress=False)
        losses.append(history.train_elbo)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-2)


def test_frozen_layers_are_the_same_bit_for_bit() -> None:
    layer = LipschitzLinear(64, 32, group_size=2).cuda()
    x = torch.rand(16, 64, device="cuda")
    with torch.no_grad():
        plain = layer(x)
        with frozen(layer):
            assert torch.equal(layer(x), plain)


def test_a_model_of_doubles_is_scored_by_torch() -> None:
    model = lipvae.VAE((1, 8, 8), 3, "fc", (32,)).double().cuda()
    x = torch.rand(9, 1, 8, 8, device="cuda", dtype=torch.float64)
    found = lipvae.Scorer(model, num_samples=40)(x)
    on_cpu = lipvae.Scorer(model.cpu(), num_samples=40)(x.cpu())
    for name, score in found.items():
        torch.testing.assert_close(score.cpu(), on_cpu[name], rtol=1e-8, atol=1e-8, msg=name)
