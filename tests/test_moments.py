"""Moments that have died out are dropped, and no weight can tell."""

from __future__ import annotations

import pytest
import torch

import lipvae
from lipvae import training
from lipvae._moments import INTERVAL, TINY, forget_tiny_moments

SMALLEST = torch.finfo(torch.float32).tiny

MAKERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
}


def steps(kind: str, forget: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A weight whose gradient ends after 20 steps, and one that has it always; and the moments."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(2, 64, generator=generator))
    optimizer = MAKERS[kind]([weights])
    for step in range(1100):
        weights.grad = 1e-3 * torch.randn(2, 64, generator=generator)
        if step >= 20:
            weights.grad[0] = 0
        optimizer.step()
        if forget:
            forget_tiny_moments(optimizer, step)
    (state,) = optimizer.state.values()
    names = ("exp_avg", "exp_avg_sq") if kind == "adam" else ("momentum_buffer",)
    return weights.detach(), [state[name] for name in names]


@pytest.mark.parametrize("kind", MAKERS)
def test_no_moment_becomes_subnormal_and_no_weight_changes(kind: str) -> None:
    expected, without = steps(kind, forget=False)
    found, moments = steps(kind, forget=True)
    assert ((without[0][0] != 0) & (without[0][0].abs() < SMALLEST)).any()
    for moment, other in zip(moments, without, strict=True):
        assert not ((moment != 0) & (moment.abs() < TINY)).any()
        assert torch.equal(moment[1], other[1])
    assert (moments[0][0] == 0).all()
    assert torch.equal(found, expected)


def test_a_moment_cannot_become_subnormal_between_two_calls() -> None:
    assert TINY * 0.9**INTERVAL > SMALLEST


def test_a_resumed_fit_counts_on(tmp_path, monkeypatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(training, "forget_tiny_moments", lambda _, step: counted.append(step))
    torch.manual_seed(0)
    data = torch.rand(40, 1, 8, 8)
    for epochs in (1, 3):
        model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(8,))
        lipvae.fit(
            model,
            data,
            epochs=epochs,
            batch_size=10,
            validation=0.0,
            checkpoint=tmp_path / "c.safetensors",
            resume=True,
            progress=False,
        )
    assert counted == list(range(12))
