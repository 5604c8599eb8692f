"""One file per op: implementation by backend, torch.library registration, autograd.

In eager mode an op goes straight through its autograd.Function, which costs a third of a custom
op's call. Under torch.compile and torch.export it goes through ``torch.ops.lipvae``.
"""

from lipvae.ops.group_sort import group_sort
from lipvae.ops.importance import importance
from lipvae.ops.importance_linear import importance_linear
from lipvae.ops.l1_ball import l1_ball
from lipvae.ops.lipschitz_linear import lipschitz_linear
from lipvae.ops.normal_samples import normal_samples
from lipvae.ops.vmf import draw_seed, vmf

__all__ = [
    "draw_seed",
    "group_sort",
    "importance",
    "importance_linear",
    "l1_ball",
    "lipschitz_linear",
    "normal_samples",
    "vmf",
]
