"""Convolutions of a GPU that give the same numbers in every run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def repeatable_convolutions(device: torch.device) -> Iterator[None]:
    """Keeps cuDNN to algorithms of one choice and one order of sums inside the block.

    By default it may pick others in every run. Nothing changes for a CPU.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
