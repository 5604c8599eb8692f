"""The mathematics in plain torch: the oracle of the tests and the fallback without the extension.

Nothing in this package calls a kernel. Fed float64 it is the truth that the C++ and Triton
kernels are judged against; every function is differentiable by ordinary autograd.
"""

from lipvae.reference.group_sort import (
    NETWORKS,
    group_sort,
    group_sort_backward,
    group_sort_network,
    group_sort_network_backward,
)
from lipvae.reference.importance import (
    FAMILIES,
    importance,
    importance_backward,
    importance_statistics,
)
from lipvae.reference.l1_ball import l1_ball_threshold, project_l1_ball, project_l1_ball_backward
from lipvae.reference.lipschitz_linear import lipschitz_linear
from lipvae.reference.normal_samples import normal_samples
from lipvae.reference.vmf import (
    angle_derivative,
    quadrature,
    sample_vmf,
    sample_vmf_backward,
)

__all__ = [
    "FAMILIES",
    "NETWORKS",
    "angle_derivative",
    "group_sort",
    "group_sort_backward",
    "group_sort_network",
    "group_sort_network_backward",
    "importance",
    "importance_backward",
    "importance_statistics",
    "l1_ball_threshold",
    "lipschitz_linear",
    "normal_samples",
    "project_l1_ball",
    "project_l1_ball_backward",
    "quadrature",
    "sample_vmf",
    "sample_vmf_backward",
]
