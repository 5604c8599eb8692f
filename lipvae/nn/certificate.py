"""Certificates: what a Lipschitz network can output over a box of inputs, soundly rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from lipvae._validate import check_finite, check_shape, describe
from lipvae._walk import hooked
from lipvae.nn.layers import GroupSort, LipschitzConv2d, LipschitzLayer, LipschitzLinear
from lipvae.nn.sequential import LipschitzSequential, lipschitz_layers

# Unit roundoff, and what flushing a subnormal number to zero costs.
_ARITHMETIC = {torch.float32: (2.0**-24, 2.0**-126), torch.float64: (2.0**-53, 2.0**-1022)}


@dataclass(frozen=True, eq=False)
class Certificate:
    """Sound bounds of a Lipschitz network over a box of inputs. Tensors are float64, on the CPU.

    Attributes:
        lipschitz: product over the layers of the largest row L1 norm of the projected weight,
            rounded up: an upper bound of the L-infinity Lipschitz constant.
        bound: M, which the layers' radii guarantee whatever the weights.
        coordinate_lipschitz: [m], an upper bound of each output's own constant, at most
            `lipschitz`.
        lower: [m], no output of the executed network lies below.
        upper: [m], no output of the executed network lies above.
        center: [m], f at the middle of the box.
        rounding: [m], bound of |executed - exact| over the box.
    """

    lipschitz: float
    bound: float
    coordinate_lipschitz: Tensor
    lower: Tensor
    upper: Tensor
    center: Tensor
    rounding: Tensor

    @property
    def diameter(self) -> Tensor:
        """[m], width of each output's interval, rounded up."""
        return _up(self.upper - self.lower)

    @property
    def radius(self) -> Tensor:
        """[m], the farthest that each output can be from `center`, rounded up."""
        return _up(torch.maximum(self.upper - self.center, self.center - self.lower))

    def contains(self, y: Tensor) -> Tensor:
        """Whether outputs lie in the certified box: [..., m] -> bool [...]."""
        y = y.detach().to(self.lower)
        return ((y >= self.lower) & (y <= self.upper)).all(-1)


def certify(
    module: nn.Module,
    input_low: float | Tensor = 0.0,
    input_high: float | Tensor = 1.0,
    *,
    input_shape: Sequence[int] | None = None,
) -> Certificate:
    r"""Bounds the outputs of a Lipschitz network over a box of inputs, equation (2).

    Two bounds are intersected. The ball: :math:`|f_j(x) - f_j(c)| \le L_j \rho` around the middle
    c of the box, whose half-width is :math:`\rho`; over the unit box that is at most M/2. And
    interval propagation through the layers.

    Everything is computed in float64 and rounded outward. The bounds hold for the real function
    and for the executed one, whose inner products may be summed in any order, with or without
    fused multiply-adds, in the weights' dtype, subnormals kept or flushed: n terms err by at most
    :math:`\gamma_n = nu/(1-nu)` times the sum of their magnitudes (Higham 2002, section 3.1).
    They hold for the backend in force, and cover neither TF32 nor Winograd's convolution.

    Args:
        module: LipschitzLinear, LipschitzConv2d, GroupSort, Flatten, Unflatten, PixelShuffle,
            Identity, or a Sequential or LipschitzSequential of these, at any depth, none with
            forward hooks. Weights float32 or float64.
        input_low: the box's lower corner: a number, or a tensor of one input's shape.
        input_high: its upper corner, likewise.
        input_shape: shape of one input. It is needed where both corners are numbers and the first
            layer is a convolution.

    Returns:
        The certificate; m is the shape of one output.

    Raises:
        TypeError: for another module, which the message names, or another dtype.
        ValueError: for a box that is empty, not finite or of the wrong shape.

    Source: Glazunov & Zarras 2023, section 4.2.2; Gowal et al. 2018 (interval propagation).

    Example:
        >>> from lipvae.nn import LipschitzLinear, LipschitzSequential
        >>> net = LipschitzSequential(
        ...     LipschitzLinear(8, 4, group_size=2), LipschitzLinear(4, 2), lipschitz=4.0
        ... )
        >>> certificate = certify(net)
        >>> certificate.lipschitz <= 4.0, bool((certificate.diameter <= 4.001).all())
        (True, True)
    """
    low, high = _box(module, input_low, input_high, input_shape)
    middle = low + (high - low) / 2
    half_width = float(_up(torch.maximum(_up(high - middle), _up(middle - low))).amax())
    zero, one = torch.zeros_like(low), torch.ones_like(low)
    box = _propagate(module, _State(low, high, zero, one), executed=True)
    point = _propagate(module, _State(middle, middle, zero, one), executed=False)
    lipschitz, bound = _norms(module)
    slope = box.slope.clamp(max=lipschitz)
    reach = _up(_up(slope * half_width) + box.error)
    return Certificate(
        lipschitz=lipschitz,
        bound=bound,
        coordinate_lipschitz=slope.squeeze(0),
        lower=torch.maximum(box.lower, _down(point.lower - reach)).squeeze(0),
        upper=torch.minimum(box.upper, _up(point.upper + reach)).squeeze(0),
        center=((point.lower + point.upper) / 2).squeeze(0),
        rounding=box.error.squeeze(0),
    )


@dataclass(frozen=True)
class _State:
    """What is known of a layer's values, [1, ...] each.

    `lower` and `upper` enclose exact and executed values, `error` their distance, and `slope` is
    each value's Lipschitz constant in the input.
    """

    lower: Tensor
    upper: Tensor
    error: Tensor
    slope: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> _State:
        return _State(*(function(t) for t in (self.lower, self.upper, self.error, self.slope)))


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _gamma(n: int, roundoff: float) -> float:
    """n u / (1 - n u), rounded up."""
    if n * roundoff >= 0.5:
        raise ValueError(f"module sums {n} terms in one layer, too many for a bound in its dtype")
    gamma = n * roundoff / (1 - n * roundoff)
    return math.nextafter(math.nextafter(gamma, math.inf), math.inf)


def _affine(layer: LipschitzLayer, state: _State, name: str, executed: bool) -> _State:
    """W x + b: the bounds are W+ l + W- u + b and W+ u + W- l + b, each widened by all rounding."""
    if layer.weight.dtype not in _ARITHMETIC:
        raise TypeError(
            f"module {name} must have float32 or float64 weights to be certified, got "
            f"{layer.weight.dtype}"
        )
    weight = layer.projected_weight().detach().cpu().double()
    bias = (
        torch.zeros(len(weight), device="cpu") if layer.bias is None else layer.bias.detach().cpu()
    )
    bias = bias.double()
    if isinstance(layer, LipschitzConv2d):
        _check_dims(state.lower, (layer.in_channels, None, None), name)
        bias = bias.view(1, -1, 1, 1)
    else:
        _check_dims(state.lower, (weight.shape[1],), name)

    def apply(x: Tensor, w: Tensor) -> Tensor:
        if isinstance(layer, LipschitzConv2d):
            return conv2d(x, w, None, layer.stride, layer.padding)
        return linear(x, w)

    terms = weight[0].numel()
    # Sums of non-negative terms, computed in double: this factor turns them into upper bounds.
    inflate = 1 + _gamma(2 * terms + 8, 2.0**-53)
    absolute = torch.maximum(state.lower.abs(), state.upper.abs())
    magnitude = (apply(absolute, weight.abs()) + bias.abs()) * inflate
    largest = 1 + float(absolute.max()) + float(weight.abs().max())

    def rounding(dtype: torch.dtype) -> Tensor:
        roundoff, flushed = _ARITHMETIC[dtype]
        n = 2 * terms + 4
        return magnitude * _gamma(terms + 4, roundoff) * inflate + n * largest * flushed

    own = rounding(torch.float64)
    run = rounding(layer.weight.dtype) if executed else torch.zeros_like(own)
    slack = _up(own + run)
    lower = apply(state.lower, weight.clamp(min=0)) + apply(state.upper, weight.clamp(max=0))
    upper = apply(state.upper, weight.clamp(min=0)) + apply(state.lower, weight.clamp(max=0))
    return _State(
        lower=_down(lower + bias - slack),
        upper=_up(upper + bias + slack),
        error=_up(apply(state.error, weight.abs()) * inflate + run),
        slope=_up(apply(state.slope, weight.abs()) * inflate),
    )


def _group_sort(size: int, dim: int, state: _State, name: str) -> _State:
    """Order statistics are monotone, and within their group 1-Lipschitz in L-infinity."""
    axis = dim % state.lower.dim()
    if axis == 0:
        raise ValueError(f"module {name} sorts over the batch (dim={dim}), got input of one row")
    if state.lower.shape[axis] % size:
        raise ValueError(
            f"module {name} needs a multiple of {size} along dim {dim}, got "
            f"{state.lower.shape[axis]}"
        )

    def ordered(x: Tensor) -> Tensor:
        groups = x.unflatten(axis, (-1, size))
        return groups.sort(axis + 1).values.flatten(axis, axis + 1)

    def largest(x: Tensor) -> Tensor:
        groups = x.unflatten(axis, (-1, size))
        peak = groups.amax(axis + 1, keepdim=True).expand_as(groups)
        return peak.flatten(axis, axis + 1)

    return _State(
        ordered(state.lower), ordered(state.upper), largest(state.error), largest(state.slope)
    )


def _propagate(module: nn.Module, state: _State, executed: bool, path: str = "") -> _State:
    name = f"{path or '(root)'} ({type(module).__name__})"
    if hooked(module):
        raise TypeError(
            f"module {name} cannot be certified: it has forward hooks, or a forward() of its own, "
            "which may change anything"
        )
    # A subclass may compute anything, so types are matched exactly, but for a Sequential that
    # keeps Sequential's own forward.
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        # named_children() would leave out a module's second place.
        for key, child in module._modules.items():
            assert child is not None
            state = _propagate(child, state, executed, f"{path}.{key}" if path else key)
        return state
    if type(module) is LipschitzLinear or type(module) is LipschitzConv2d:
        state = _affine(module, state, name, executed)
        if module.group_size is None:
            return state
        dim = 1 if isinstance(module, LipschitzConv2d) else -1
        return _group_sort(module.group_size, dim, state, name)
    if type(module) is GroupSort:
        return _group_sort(module.group_size, module.dim, state, name)
    if type(module) is nn.Flatten or type(module) is nn.Unflatten:
        first = module.start_dim if isinstance(module, nn.Flatten) else module.dim
        if isinstance(first, int) and first % state.lower.dim() == 0:
            raise ValueError(f"module {name} reshapes the batch dimension, got {module}")
        return state.map(module)
    if type(module) is nn.PixelShuffle:  # moves values and computes nothing
        return state.map(module)
    if type(module) is nn.Identity:
        return state
    raise TypeError(
        f"module {name} cannot be certified: known are Sequential, LipschitzSequential, "
        "LipschitzLinear, LipschitzConv2d, GroupSort, Flatten, Unflatten, PixelShuffle and Identity"
    )


def _check_dims(x: Tensor, expected: tuple[int | None, ...], name: str) -> None:
    got = tuple(x.shape[1:])
    matches = len(got) == len(expected) if len(expected) > 1 else len(got) >= 1
    if not matches or (got[0] if len(expected) > 1 else got[-1]) != expected[0]:
        shape = ", ".join("*" if size is None else str(size) for size in expected)
        raise ValueError(f"module {name} takes inputs of shape [{shape}], got {list(got)}")


def _norms(module: nn.Module) -> tuple[float, float]:
    """Products of the layers' actual norms and of their radii, rounded up."""
    lipschitz = bound = 1.0
    for layer in lipschitz_layers(module):
        rows = layer.projected_weight().detach().cpu().double().flatten(1).abs()
        sums = rows.sum(1)
        # Only rows that may be the largest get the exact sum.
        candidates = rows[sums >= sums.max() * (1 - 2.0**-30)]
        norm = max(math.fsum(row) for row in candidates.tolist())
        radius = layer.lipschitz * (1 + torch.finfo(layer.weight.dtype).eps)
        lipschitz = math.nextafter(lipschitz * math.nextafter(norm, math.inf), math.inf)
        bound = math.nextafter(bound * math.nextafter(radius, math.inf), math.inf)
    if isinstance(module, LipschitzSequential):
        bound = max(bound, module.lipschitz)
    return lipschitz, bound


def _box(
    module: nn.Module,
    low: float | Tensor,
    high: float | Tensor,
    input_shape: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """The box's corners, float64 [1, ...]."""
    shape = None if input_shape is None else tuple(input_shape)
    for value in (low, high):
        if shape is None and isinstance(value, Tensor) and value.dim():
            shape = tuple(value.shape)
    if shape is None:
        shape = _first_shape(module)
    corners = []
    for name, value in (("input_low", low), ("input_high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
            raise TypeError(f"{name} must be a number or a tensor, got {describe(value)}")
        corner = torch.as_tensor(value, device="cpu").detach().double()
        check_finite(name, corner)
        if corner.dim():
            check_shape(name, corner, shape)
        corners.append(corner.expand(shape).unsqueeze(0).contiguous())
    if bool((corners[0] > corners[1]).any()):
        raise ValueError(f"input_low must not exceed input_high, got {low} and {high}")
    return corners[0], corners[1]


def _first_shape(module: nn.Module) -> tuple[int, ...]:
    layers = lipschitz_layers(module)
    if layers and isinstance(layers[0], LipschitzLinear):
        return (layers[0].in_features,)
    raise ValueError(
        "input_shape must be given where input_low and input_high are numbers and the first layer "
        "is not a LipschitzLinear, got None"
    )
