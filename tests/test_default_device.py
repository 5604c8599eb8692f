"""CPU tensors stay on the CPU whatever torch.set_default_device says.

The C++ kernels write into buffers by address: one that followed the default device would not be
memory of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import lipvae
from lipvae import functional
from lipvae.nn import LipschitzConv2d, LipschitzLinear, certify

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)  # a device would leave a mode behind that torch.compile sees


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, device=CPU)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_the_ops(backend: str) -> None:
    weight, x = rand(8, 6).requires_grad_(), rand(3, 6)
    with lipvae.backend(backend):
        for y in (
            functional.project_l1_ball(weight, 0.5),
            functional.group_sort(weight, 2),
            functional.lipschitz_linear(x, weight, None, 0.5, 2),
            functional.importance_log_likelihood(weight.view(2, 4, 6), rand(4, 6)),
            functional.sample_vmf(weight, weight[:, 0] + 1, (2,)),
        ):
            assert y.device == CPU
            (grad,) = torch.autograd.grad(y.sum(), weight)
            assert grad.device == CPU


def test_the_layers() -> None:
    linear = LipschitzLinear(6, 8, group_size=2, device="cpu")
    conv = LipschitzConv2d(1, 4, 3, group_size=2, device="cpu")
    assert linear(rand(3, 6)).device == CPU
    assert conv(rand(2, 1, 5, 5)).device == CPU
    assert certify(linear).lower.device == CPU


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_training_and_scoring(architecture: str) -> None:
    with torch.device("cpu"):
        hidden = (16,) if architecture == "fc" else (4, 8)
        model = lipvae.LipschitzVAE((1, 8, 8), 2, architecture, hidden)
    x = rand(40, 1, 8, 8)
    lipvae.fit(model, x, epochs=1, batch_size=16, progress=False)
    scorer = lipvae.Scorer(model, "all", num_samples=8, refine=1).calibrate(x[:10])
    assert all(score.device == CPU for score in scorer(x[:3]).values())
    sobol = lipvae.Scorer(model, num_samples=8, noise="sobol")
    assert all(score.device == CPU for score in sobol(x[:3]).values())
    assert lipvae.Scorer(model, "all", num_samples=8, seed=1)(x[:3])["elbo"].device == CPU
