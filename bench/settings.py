"""What a run measures, and the buffers that all ops need."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lipvae
from bench.harness import Budget, Provider, Skip
from bench.machine import cache_bytes

# GPU caches are smaller than twice this.
_CUDA_STREAM_BYTES = 256 * 1024**2

COPY, CLONE = "copy", "allocating copy"
KERNEL, PUBLIC = "lipvae kernel", "lipvae"
WARM, REFERENCE = "lipvae kernel, warm start", "lipvae, reference backend"
TRITON = "lipvae, Triton's product"


@dataclass(frozen=True)
class Settings:
    """A run.

    Attributes:
        device: "cpu" or "cuda".
        quick: few and small shapes, one compiled peer an op.
    """

    device: str = "cpu"
    quick: bool = False

    @property
    def cuda(self) -> bool:
        """Whether the run is on a GPU."""
        return self.device == "cuda"

    @property
    def budget(self) -> Budget:
        """Time and rounds of a case."""
        return Budget(0.4, 3, 50) if self.quick else Budget(1.2, 3, 200)

    def generator(self, seed: int = 0) -> torch.Generator:
        """A seeded generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def randn(self, *shape: int, seed: int = 0) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator(seed), device=self.device)

    def rand(self, *shape: int, seed: int = 0) -> Tensor:
        """Uniform numbers."""
        return torch.rand(*shape, generator=self.generator(seed), device=self.device)

    def ring(self, tensor: Tensor, streamed: bool) -> Callable[[], Tensor]:
        """A source of the tensor's data: one buffer, or copies that exceed twice the cache."""
        if not streamed:
            return lambda: tensor
        size = tensor.numel() * tensor.element_size()
        total = _CUDA_STREAM_BYTES if self.cuda else 2 * cache_bytes()
        copies = [tensor.clone() for _ in range(max(2, -(-total // size)))]
        return itertools.cycle(copies).__next__


def copy_limits(
    source: Callable[[], Tensor], like: Tensor, *, graph: bool = True
) -> list[Provider]:
    """The two limits of an elementwise op: a copy into a buffer, and one that allocates.

    Kernels that write into a buffer are compared to the first, ops that return a fresh tensor to
    the second: beyond the allocator's threshold fresh pages cost more than the copy.
    """
    out = torch.empty_like(like)
    return [
        Provider(COPY, "limit", lambda: out.copy_(source()), graph=graph),
        Provider(CLONE, "limit", lambda: source().clone()),
    ]


def peer(
    providers: list[Provider],
    skipped: dict[str, str],
    name: str,
    make: Callable[[], Callable[[], Any]],
    **options: Any,
) -> None:
    """Adds a peer, or why it cannot be had."""
    try:
        providers.append(Provider(name, "peer", make(), **options))
    except Skip as error:
        skipped[name] = str(error)


def on_reference(run: Callable[[], Any]) -> Provider:
    """The same call on the reference backend, which is also what runs without the extension."""

    def referred() -> Any:
        with lipvae.backend("reference"):
            return run()

    return Provider(REFERENCE, "ours", referred)


def on_triton(run: Callable[[], Any], *, graph: bool = False) -> Provider:
    """The same call on a GPU by the Triton backend, which leaves no product to cuBLAS."""

    def requested() -> Any:
        with lipvae.backend("triton"):
            return run()

    return Provider(TRITON, "ours", requested, graph=graph)


def vjp(function: Callable[..., Any], inputs: list[Tensor], grad: Tensor) -> Callable[[], Any]:
    """The backward pass of ``function(*inputs)`` alone, over a graph that is kept."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    output = function(*inputs)
    return lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True)
