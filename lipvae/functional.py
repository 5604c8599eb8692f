"""The ops as functions: projection, sorting, the Lipschitz layer, importance statistics, samples.

Every function runs on the backend that :func:`lipvae.backend` describes, works under
``torch.compile(fullgraph=True)`` and ``torch.export``, and has an exact gradient. Outside
``torch.compile`` the transforms of :mod:`torch.func` and forward-mode differentiation take the
reference; vMF is none of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipvae import ops, reference
from lipvae._validate import (
    check_finite,
    check_group_size,
    check_like,
    check_positive,
    check_shape,
    check_tensor,
)
from lipvae.ops._common import refuse_transforms
from lipvae.statistics import ImportanceAccumulator, ImportanceStatistics

__all__ = [
    "ImportanceStatistics",
    "group_sort",
    "importance_log_likelihood",
    "importance_statistics",
    "lipschitz_linear",
    "project_l1_ball",
    "sample_vmf",
]


def project_l1_ball(weight: Tensor, radius: float = 1.0) -> Tensor:
    r"""Projects each row onto the L1 ball of radius r, equation (1).

    :math:`P_r(w) = \mathrm{sign}(w)\max(|w| - \tau, 0)` with the smallest :math:`\tau \ge 0` for
    which :math:`\|P_r(w)\|_1 \le r`. The largest row L1 norm is the operator norm from L-infinity
    to L-infinity, so a layer with the projected weight is r-Lipschitz there. The gradient is that
    of equation (3).

    Args:
        weight: [out, in], floating point.
        radius: r > 0.

    Returns:
        [out, in] in the dtype of `weight`. A row sum exceeds r by at most one rounding.

    Raises:
        TypeError: if `weight` is not a floating-point tensor (float32 or float64 on a CPU).
        ValueError: if `weight` is not two-dimensional or `radius` not positive.

    Source: Duchi et al. 2008; Glazunov & Zarras 2023, section 4.2.2.

    Example:
        >>> import torch
        >>> project_l1_ball(torch.tensor([[3.0, -2.0], [0.2, 0.1]]))
        tensor([[1.0000, 0.0000],
                [0.2000, 0.1000]])
    """
    check_tensor("weight", weight, dim=2)
    return ops.l1_ball(weight, check_positive("radius", radius))[0]


def group_sort(x: Tensor, group_size: int = 2, dim: int = -1) -> Tensor:
    """Sorts ascending inside groups of neighbours along `dim`; group size 2 is MaxMin.

    GroupSort is 1-Lipschitz in every p-norm and keeps the gradient's norm. Elements that tie get
    one gradient each.

    Args:
        x: any shape with at least one dimension, floating point.
        group_size: g >= 1, a divisor of the length along `dim`. Kernels cover 2, 4 and 8; other
            sizes take ``torch.sort``.
        dim: the dimension whose neighbours form groups.

    Returns:
        The shape and dtype of `x`.

    Raises:
        TypeError: if `x` is not a floating-point tensor or `group_size` not an int.
        ValueError: if `group_size` does not divide the length along `dim`.

    Source: Anil, Lucas & Grosse 2019, section 4.2.

    Example:
        >>> import torch
        >>> group_sort(torch.tensor([2.0, 1.0, 3.0, 4.0]))
        tensor([1., 2., 3., 4.])
    """
    check_tensor("x", x, min_dim=1)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be in [{-x.dim()}, {x.dim()}), got {dim}")
    return ops.group_sort(x, check_group_size(group_size, x.shape[dim]), dim)


def lipschitz_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    radius: float = 1.0,
    group_size: int | None = None,
) -> Tensor:
    r"""The Lipschitz layer :math:`\mathrm{GroupSort}_g(P_r(W) x + b)`, equation (1).

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out] or None.
        radius: r > 0; the layer is r-Lipschitz in L-infinity.
        group_size: g, a divisor of out, or None for no sort.

    Returns:
        [..., out].

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for shapes, dtypes or devices that do not fit together.

    Source: Anil, Lucas & Grosse 2019; Glazunov & Zarras 2023, section 4.2.2.

    Example:
        >>> import torch
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.5, 0.0]])
        >>> lipschitz_linear(x, weight, group_size=2)
        tensor([[0.5000, 1.5000]])
    """
    check_tensor("x", x, min_dim=1)
    check_tensor("weight", weight, dim=2)
    check_like("weight", weight, "x", x)
    out_features, in_features = weight.shape
    if x.shape[-1] != in_features:
        raise ValueError(
            f"x must have {in_features} features, the columns of weight, got shape {tuple(x.shape)}"
        )
    if bias is not None:
        check_tensor("bias", bias, dim=1)
        check_like("bias", bias, "x", x)
        check_shape("bias", bias, (out_features,))
    if group_size is not None:
        group_size = check_group_size(group_size, out_features)
    return ops.lipschitz_linear(x, weight, bias, check_positive("radius", radius), group_size)[0]


def importance_log_likelihood(
    parameters: Tensor, target: Tensor, likelihood: str = "bernoulli"
) -> Tensor:
    """log p(x | z_k) for K decoded samples of each input, equation (5), in one pass.

    Args:
        parameters: [K, B, P * D], the decoder's output for the k-th sample of each input.
        target: [B, D], inputs in [0, 1]; grey values are allowed.
        likelihood: "bernoulli" (P = 1, logits), "continuous_bernoulli" (1, logits), "gaussian"
            (2: D means, then D log scales), "discretized_logistic" (2, likewise) or
            "categorical256" (256 logits: D of the first class, D of the second, ...).

    Returns:
        [K, B] in nats; float32 for half inputs, else the inputs' dtype.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape, or another likelihood.

    Source: Glazunov & Zarras 2023, section 4.1.

    Example:
        >>> import torch
        >>> importance_log_likelihood(torch.zeros(1, 1, 2), torch.ones(1, 2))
        tensor([[-1.3863]])
    """
    check_tensor("parameters", parameters, dim=3)
    check_tensor("target", target, dim=2)
    check_like("target", target, "parameters", parameters)
    if likelihood not in reference.FAMILIES:
        known = ", ".join(reference.FAMILIES)
        raise ValueError(f"likelihood must be one of {known}, got {likelihood!r}")
    count = reference.FAMILIES[likelihood].parameters_per_dim
    k, b, width = parameters.shape
    if target.shape[0] != b or target.shape[1] * count != width:
        raise ValueError(
            f"parameters must be [K, B, {count} * D] for target [B, D] and likelihood "
            f"{likelihood!r}, got {(k, b, width)} and {tuple(target.shape)}"
        )
    return ops.importance(parameters, target, likelihood)


def importance_statistics(
    parameters: Tensor,
    target: Tensor,
    log_prior: Tensor,
    log_posterior: Tensor,
    likelihood: str = "bernoulli",
) -> ImportanceStatistics:
    """Hole indicator, stds of LLs, IS log-likelihood, ELBO and ESS in one pass, equation (6).

    Args:
        parameters: [K, B, P * D], the decoder's output; see :func:`importance_log_likelihood`.
        target: [B, D], inputs in [0, 1].
        log_prior: [K, B], log p(z_k).
        log_posterior: [K, B], log q(z_k | x).
        likelihood: the family of p(x | z).

    Returns:
        Statistics over k, float64 [B] each.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape, or K = 0.

    Source: Glazunov & Zarras 2023, section 4.1.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[0.0]], [[2.0]]])
        >>> zeros = torch.zeros(2, 1)
        >>> importance_statistics(logits, torch.ones(1, 1), zeros, zeros).ess
        tensor([1.8586], dtype=torch.float64)
    """
    log_likelihood = importance_log_likelihood(parameters, target, likelihood)
    if not len(log_likelihood):
        raise ValueError("parameters must hold at least one sample, got K = 0")
    for name, value in (("log_prior", log_prior), ("log_posterior", log_posterior)):
        check_tensor(name, value, dim=2)
        check_shape(name, value, tuple(log_likelihood.shape))
    accumulator = ImportanceAccumulator()
    accumulator.update(log_likelihood, log_prior.double() - log_posterior.double())
    return accumulator.statistics()


def sample_vmf(
    loc: Tensor,
    concentration: Tensor,
    sample_shape: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Samples of the von Mises-Fisher distribution on the sphere S^(m-1), equation (4).

    The density is proportional to :math:`\exp(\kappa \langle \mu, x \rangle)`. Sampling is exact
    (Wood's rejection sampler; closed forms for m = 3) at any :math:`\kappa`, including 0, the
    uniform distribution. The gradient in `loc` and `concentration` is that of an implicit
    reparameterisation, so the gradient of any expectation is unbiased.

    Args:
        loc: [..., m], m >= 2: mu, used through its direction loc / \|loc\|. Its gradient is
            orthogonal to it.
        concentration: [...], kappa >= 0, with a batch shape that broadcasts with loc's.
        sample_shape: shape of the samples of each distribution.
        generator: where the seed of the random streams comes from; torch's default one if None.
            The samples depend on the seed only: not on the number of threads.

    Returns:
        [*sample_shape, ..., m] in the dtype of `loc`; the norm is 1 to 2 ulp.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: if m < 2, if the shapes, dtypes or devices don't fit together, or, on a CPU,
            if an argument is not finite, a row of `loc` is 0 or `concentration` is negative. On a
            GPU, where a check would wait for the device, such rows have no meaning.
        NotImplementedError: inside a transform of :mod:`torch.func`, or for a tangent of
            forward-mode differentiation.

    Source: Wood 1994; Ulrich 1984; Figurnov, Mohamed & Mnih 2018 for the gradient; Davidson et
    al. 2018 and Glazunov & Zarras 2023, section 4.2.1 for its use.

    Example:
        >>> import torch
        >>> loc, concentration = torch.tensor([1.0, 0.0, 0.0]), torch.tensor(100.0)
        >>> x = sample_vmf(loc, concentration, (1000,))
        >>> x.shape, bool((x[:, 0] > 0.8).all())
        (torch.Size([1000, 3]), True)
    """
    refuse_transforms("samples of vMF", loc, concentration)
    check_tensor("loc", loc, min_dim=1)
    check_tensor("concentration", concentration)
    check_like("concentration", concentration, "loc", loc)
    dim = loc.shape[-1]
    if dim < 2:
        raise ValueError(f"loc must have at least 2 entries a row, got shape {tuple(loc.shape)}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    try:
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
    except RuntimeError:
        raise ValueError(
            f"concentration must broadcast with the batch of loc, got {tuple(concentration.shape)} "
            f"and {tuple(loc.shape[:-1])}"
        ) from None
    if loc.is_cpu and not torch.compiler.is_compiling():
        check_finite("loc", loc)
        check_finite("concentration", concentration)
        if not loc.detach().any(-1).all():
            raise ValueError("loc must have a direction, got a row of zeros")
        if concentration.numel() and concentration.detach().min() < 0:
            raise ValueError(
                f"concentration must be at least 0, got {float(concentration.detach().min()):g}"
            )
    shape = torch.Size(sample_shape)
    seed = ops.draw_seed(loc.device, generator)
    x, _ = ops.vmf(
        loc.expand(*batch_shape, dim).reshape(-1, dim),
        concentration.expand(batch_shape).reshape(-1),
        shape.numel(),
        seed,
    )
    return x.view(*shape, *batch_shape, dim)
