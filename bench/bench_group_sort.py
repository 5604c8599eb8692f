"""group_sort: sort inside groups of neighbours, against a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.harness import Case, Provider
from bench.peers import group_sort as peers
from bench.peers.compiled import compiled
from bench.settings import (
    CLONE,
    COPY,
    KERNEL,
    PUBLIC,
    Settings,
    copy_limits,
    on_reference,
    peer,
    vjp,
)
from lipvae import functional, reference
from lipvae._backend import cpp_availability

GROUP_SIZES = (2, 4, 8)
SHAPES = [(128, 512), (4096, 512), (4096, 4096)]
QUICK_SHAPES = [(128, 512), (4096, 512)]
# Activations of a convolution: batch, channels, pixels.
IMAGE_SHAPE = (128, 32, 196)


class _Kernel:
    """The C++ kernel on buffers that it does not allocate."""

    def __init__(self, x: Tensor, group_size: int, dim: int) -> None:
        self.outer, self.n = x.shape[:dim].numel(), x.shape[dim]
        self.inner, self.g = x.shape[dim + 1 :].numel(), group_size
        groups = self.n // group_size * self.inner
        self.code = torch.empty(
            len(reference.NETWORKS[group_size]), self.outer, (groups + 7) // 8, dtype=torch.uint8
        )
        self.threads = torch.get_num_threads()
        self.module: Any = cpp_availability().module

    def forward(self, x: Tensor, out: Tensor) -> None:
        self.module.group_sort_forward(
            x.data_ptr(), out.data_ptr(), self.code.data_ptr(), self.outer, self.n, self.inner,
            self.g, 0, self.threads,
        )  # fmt: skip

    def backward(self, grad: Tensor, out: Tensor) -> None:
        self.module.group_sort_backward(
            grad.data_ptr(), self.code.data_ptr(), out.data_ptr(), self.outer, self.n, self.inner,
            self.g, 0, self.threads,
        )  # fmt: skip


def _case(
    variant: str, x: Tensor, g: int, providers: list[Provider], skipped: dict[str, str]
) -> Case:
    names = ("batch", "features") if x.dim() == 2 else ("batch", "channels", "pixels")
    shape = {**dict(zip(names, x.shape, strict=True)), "group_size": g}
    work = {
        "bytes": 2 * 4 * x.numel(),
        "code_bytes": len(reference.NETWORKS[g]) * x.numel() / g / 8,
    }
    return Case("group_sort", variant, shape, x.dtype, providers, skipped=skipped, work=work)


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass."""
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(sizes)


def forward_case(x: Tensor, g: int, dim: int, settings: Settings, *, compile_: bool) -> Case:
    """Times the pass that records the comparators' outcomes for the backward pass."""
    out = torch.empty_like(x)
    providers = copy_limits(lambda: x, x)
    if cpp_availability().module is not None and not settings.cuda:
        kernel = _Kernel(x, g, dim)
        providers.append(Provider(KERNEL, "ours", lambda: kernel.forward(x, out), COPY))
    leaf = x.clone().requires_grad_()
    saved = saved_bytes(lambda: functional.group_sort(leaf, g, dim)) / x.numel()
    providers.append(
        Provider(
            PUBLIC, "ours", lambda: functional.group_sort(leaf, g, dim), CLONE,
            extra={"saved_bytes_per_entry": saved},
        )
    )  # fmt: skip
    if x.shape == SHAPES[0]:
        providers.append(on_reference(providers[-1].run))
    skipped: dict[str, str] = {}
    if dim == x.dim() - 1:
        _peers(providers, skipped, g, compile_, lambda f: lambda: f(leaf))
    return _case(f"forward, g={g}", x, g, providers, skipped)


def backward_case(x: Tensor, g: int, dim: int, settings: Settings) -> Case:
    grad, out = settings.randn(*x.shape, seed=1), torch.empty_like(x)
    providers = copy_limits(lambda: grad, grad)
    if cpp_availability().module is not None and not settings.cuda:
        kernel = _Kernel(x, g, dim)
        kernel.forward(x, out)
        providers.append(Provider(KERNEL, "ours", lambda: kernel.backward(grad, out), COPY))
    ours = vjp(lambda t: functional.group_sort(t, g, dim), [x], grad)
    providers.append(Provider(PUBLIC, "ours", ours, CLONE))
    skipped: dict[str, str] = {}
    if dim == x.dim() - 1:
        _peers(providers, skipped, g, False, lambda f: vjp(f, [x], grad))
    return _case(f"backward, g={g}", x, g, providers, skipped)


def _peers(
    providers: list[Provider],
    skipped: dict[str, str],
    g: int,
    compile_: bool,
    run: Callable[[Callable[[Tensor], Tensor]], Callable[[], Any]],
) -> None:
    peer(providers, skipped, "deel-torchlip", lambda: run(peers.deel(g)), peer_of=PUBLIC)
    peer(
        providers, skipped, "torch.sort", lambda: run(lambda t: peers.torch_sort(t, g)),
        peer_of=PUBLIC,
    )  # fmt: skip
    peer(
        providers, skipped, "min and max, eager", lambda: run(lambda t: peers.min_max(t, g)),
        peer_of=PUBLIC,
    )  # fmt: skip
    if compile_:
        fast = compiled(peers.min_max)
        peer(
            providers, skipped, "min and max, compiled", lambda: run(lambda t: fast(t, g)),
            peer_of=PUBLIC,
        )  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    shapes = QUICK_SHAPES if settings.quick else SHAPES
    for shape in shapes:
        x = settings.randn(*shape)
        for g in GROUP_SIZES:
            compile_ = shape == shapes[-1] and (g == 2 or not settings.quick)
            yield forward_case(x, g, 1, settings, compile_=compile_)
            yield backward_case(x, g, 1, settings)
    x = settings.randn(*IMAGE_SHAPE)
    yield forward_case(x, 2, 1, settings, compile_=False)
    yield backward_case(x, 2, 1, settings)
