"""Lipschitz layers under autocast: they keep their precision, and with it their bound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipvae
from lipvae.nn import LipschitzConv2d, LipschitzLinear


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_layer_takes_what_autocast_made_half(backend: str) -> None:
    before, layer = nn.Linear(6, 10), LipschitzLinear(10, 8, group_size=2)
    x = torch.rand(4, 6)
    with lipvae.backend(backend), torch.autocast("cpu", torch.bfloat16):
        half = before(x)
        y = layer(half)
    assert half.dtype == torch.bfloat16
    assert y.dtype == torch.float32
    with lipvae.backend(backend):
        assert torch.equal(y, layer(half.float()))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_neither_a_frozen_layer_nor_a_gradient_is_made_half(backend: str) -> None:
    layer, x = LipschitzLinear(10, 8, group_size=2), torch.rand(4, 10, requires_grad=True)
    inputs = [x, *layer.parameters()]
    with lipvae.backend(backend):
        y = layer(x)
        grads = torch.autograd.grad(y, inputs, y)
        with torch.autocast("cpu", torch.bfloat16):
            again = torch.autograd.grad(layer(x), inputs, y)
            with lipvae.nn.frozen(layer), torch.no_grad():
                frozen = layer(x)
    assert torch.equal(frozen, y)
    for grad, same in zip(grads, again, strict=True):
        assert torch.equal(grad, same)


def test_a_convolution_is_not_made_half() -> None:
    first = LipschitzConv2d(1, 4, 3, group_size=2)
    second = LipschitzConv2d(4, 6, 3, group_size=2)
    x = torch.rand(2, 1, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = second(first(x))
        half = first(x.bfloat16())
    assert torch.equal(y, second(first(x)))
    assert torch.equal(half, first(x.bfloat16().float()))


def test_another_dtype_is_an_error_without_autocast() -> None:
    with pytest.raises(TypeError, match="must be float32 or float64 on a CPU"):
        LipschitzLinear(10, 8)(torch.rand(4, 10).bfloat16())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="dtype"):
        LipschitzLinear(10, 8)(torch.rand(4, 10).double())


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_a_model_trains_under_autocast(architecture: str) -> None:
    model = lipvae.LipschitzVAE(
        (1, 8, 8), 2, architecture, (16,) if architecture == "fc" else (4, 8)
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = -model.elbo(torch.rand(3, 1, 8, 8)).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
