"""What the operators return lies in memory as torch.compile was told, however the inputs lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lipvae
from lipvae import ops


def arguments(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Of each operator, with sizes that tell the dimensions apart."""
    x, weight, bias = (torch.randn(*s, dtype=dtype) for s in ((5, 12), (8, 12), (8,)))
    threshold = torch.full((8,), 0.1, dtype=torch.float64)
    groups = torch.randn(6, 8, 5, dtype=dtype)
    parameters, target = torch.randn(4, 3, 10, dtype=dtype), torch.rand(3, 10, dtype=dtype)
    hidden, head = torch.randn(4, 3, 7, dtype=dtype), torch.randn(10, 7, dtype=dtype)
    loc, kappa = torch.randn(5, 3, dtype=dtype), torch.rand(5, dtype=dtype) + 1
    seed = torch.tensor([3])
    draws, t = ops.vmf(loc, kappa, 2, seed)
    _, code = torch.ops.lipvae.group_sort(groups, 2, 1, True)
    y, _, row_code = torch.ops.lipvae.lipschitz_linear(x, weight, bias, 1.0, 2, None, True)
    return {
        "l1_ball": (weight, 1.0, None),
        "l1_ball_backward": (torch.randn_like(weight), weight, threshold),
        "group_sort": (groups, 2, 1, True),
        "group_sort_backward": (torch.randn_like(groups), code, 2, 1),
        "lipschitz_linear": (x, weight, bias, 1.0, 2, None, True),
        "lipschitz_linear_backward": (y, x, weight, threshold, row_code, 2, [True] * 3),
        "importance": (parameters, target, "bernoulli"),
        "importance_backward": (torch.rand(4, 3, dtype=dtype), parameters, target, "bernoulli"),
        "importance_linear": (hidden, head, None, target, "bernoulli"),
        "vmf": (loc, kappa, 2, seed, 0, False),
        "vmf_backward": (torch.randn_like(draws), torch.randn_like(t), loc, kappa, draws, t),
        "vmf_moments": (kappa, 3),
    }


def turned(value: Any, first: int, second: int) -> Any:
    """Equal numbers, two dimensions of which lie in memory the other way around."""
    if not isinstance(value, torch.Tensor) or value.dim() <= max(first, second):
        return value
    if value.dtype == torch.uint8:  # codes lie as they were made
        return value
    return value.transpose(first, second).contiguous().transpose(first, second)


@pytest.mark.parametrize("dims", [(0, 0), (0, 1), (1, 2), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", arguments(torch.float32))
def test_strides_are_those_of_the_fake(
    name: str, backend: str, dtype: torch.dtype, dims: tuple[int, int]
) -> None:
    op = getattr(torch.ops.lipvae, name)
    with lipvae.backend(backend):
        given = [turned(value, *dims) for value in arguments(dtype)[name]]
        real = op(*given)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in given]
            fake = op(*fakes)
    pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
    for got, told in pairs:
        assert (got.shape, got.dtype) == (told.shape, told.dtype)
        assert got.stride() == told.stride()
