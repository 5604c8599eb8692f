"""Moments of gradients that have died out, in optimisers on a CPU."""

from __future__ import annotations

import torch
from torch.nn.functional import hardshrink

# Without a gradient Adam's first moment falls from TINY to the subnormal numbers in 173 steps.
INTERVAL = 100

# Adam divides by at least 1e-8, so a moment of this size moves a weight by 1e-22 of the learning
# rate.
TINY = 1e-30

_NAMES = ("exp_avg", "exp_avg_sq", "momentum_buffer")


@torch.no_grad()
def forget_tiny_moments(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets moments below TINY to zero, after every INTERVAL-th step; on CPUs only.

    The weights of a pixel that is always black, or of a unit that is never active, get no gradient.
    Their moments decay until they are subnormal, and an Intel CPU is many times slower with such
    numbers: from the second epoch on, training on Fashion-MNIST took twice its time.

    Args:
        optimizer: after its step.
        step: number of that step, from 0.
    """
    if (step + 1) % INTERVAL:
        return
    for state in optimizer.state.values():
        for name in _NAMES:
            moment = state.get(name)
            if isinstance(moment, torch.Tensor) and moment.device.type == "cpu":
                moment.copy_(hardshrink(moment, TINY))
