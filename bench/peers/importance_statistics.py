"""Statistics of importance weights, an op of torch each."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def eager(log_likelihood: Tensor, log_ratio: Tensor) -> list[Tensor]:
    """In the order of :class:`lipvae.functional.ImportanceStatistics`."""
    ll = log_likelihood.double()
    log_weight = ll + log_ratio
    evidence = torch.logsumexp(log_weight, 0)
    return [
        ll.mean(0),
        ll.std(0),
        log_weight.std(0),
        evidence - math.log(len(ll)),
        log_weight.mean(0),
        -log_ratio.mean(0),
        (2 * evidence - torch.logsumexp(2 * log_weight, 0)).exp(),
    ]
