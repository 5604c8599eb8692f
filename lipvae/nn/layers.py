"""GroupSort and the layers of equation (1) as modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from lipvae import ops
from lipvae._backend import choose
from lipvae._validate import (
    check_count,
    check_group_size,
    check_like,
    check_positive,
    check_tensor,
    describe,
    fits_rows,
)
from lipvae.ops._common import (
    autocasting,
    compiling,
    has_tangent,
    needs_grad,
    transforming,
    without_autocast,
)
from lipvae.ops.packed_lipschitz import PackedLipschitzLinear
from lipvae.ops.projected_lipschitz import ProjectedLipschitzLinear

# Entries of a fresh row that matter, and the shares of the radius that these and all the others
# take. Dense rows of L1 norm r average their inputs, and the signal dies within two layers; a row
# of few entries keeps it, and the noise breaks ties among the rest.
SPARSE_ENTRIES = 8
SPARSE_SHARE = 0.95
NOISE_SHARE = 0.03


@torch.no_grad()
def sparse_rows_(
    weight: Tensor, radius: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Fills each row with few large entries and much small noise, inside the L1 ball.

    A row has min(8, n) entries at random places, of random sign and of L1 norm 0.95 r together;
    the others are normal noise of L1 norm about 0.03 r.

    Args:
        weight: [out, ...], floating point; a row is everything but the first dimension.
        radius: r > 0.
        generator: source of the draws; the global one of torch by default.

    Returns:
        `weight`, filled in place.

    Example:
        >>> import torch
        >>> weight = sparse_rows_(torch.empty(3, 100), generator=torch.Generator().manual_seed(0))
        >>> bool((weight.abs().sum(1) < 1).all())
        True
    """
    rows, columns = len(weight), weight[0].numel()
    entries = min(SPARSE_ENTRIES, columns)
    device = weight.device if generator is None else generator.device
    options: dict[str, Any] = {"device": device, "generator": generator}
    places = torch.rand(rows, columns, **options).topk(entries, dim=1).indices
    magnitude = torch.rand(rows, entries, **options) + 0.5
    magnitude *= SPARSE_SHARE * radius / magnitude.sum(1, keepdim=True)
    sign = torch.randint(0, 2, (rows, entries), **options) * 2 - 1
    # E|noise| = sigma sqrt(2 / pi); a row of at most 8 columns has no room for noise.
    sigma = NOISE_SHARE * radius / columns * (torch.pi / 2) ** 0.5
    filled = torch.randn(rows, columns, **options) * sigma
    filled.scatter_(1, places, magnitude * sign)
    return weight.copy_(filled.view_as(weight))


class GroupSort(nn.Module):
    """Sorts ascending inside groups of neighbours: 1-Lipschitz, gradient norm preserving.

    See :func:`lipvae.functional.group_sort`.

    Args:
        group_size: g >= 1; 2 is MaxMin.
        dim: the dimension whose neighbours form groups.

    Shape:
        Any; the length along `dim` is a multiple of `group_size`.

    Source: Anil, Lucas & Grosse 2019, section 4.2.

    Example:
        >>> import torch
        >>> GroupSort()(torch.tensor([2.0, 1.0]))
        tensor([1., 2.])
    """

    def __init__(self, group_size: int = 2, dim: int = -1) -> None:
        super().__init__()
        self.group_size = check_count("group_size", group_size)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with its groups sorted."""
        check_tensor("x", x, min_dim=1)
        if not -x.dim() <= self.dim < x.dim():
            raise ValueError(f"dim must be in [{-x.dim()}, {x.dim()}), got {self.dim}")
        return ops.group_sort(x, check_group_size(self.group_size, x.shape[self.dim]), self.dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"group_size={self.group_size}, dim={self.dim}"


class LipschitzLayer(nn.Module):
    """What the linear and the convolutional layer of equation (1) share.

    Attributes:
        weight: the raw weight; each forward pass projects its rows onto the L1 ball.
        bias: [out] or None.
        threshold: float64 [out], the rows' thresholds in the last training pass. The next one
            starts from them; no result depends on them, and no state dict holds them.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    threshold: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        lipschitz: float,
        group_size: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        out = shape[0]
        self.group_size = None if group_size is None else check_group_size(group_size, out)
        self.lipschitz = lipschitz
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out, device=device, dtype=dtype)) if bias else None
        self.register_buffer(
            "threshold", torch.zeros(out, device=device, dtype=torch.float64), persistent=False
        )
        self._frozen: Any = None
        self.reset_parameters()

    @property
    def lipschitz(self) -> float:
        """The radius r of the rows' L1 ball: a bound on the layer's Lipschitz constant."""
        return self._lipschitz

    @lipschitz.setter
    def lipschitz(self, value: float) -> None:
        self._lipschitz = check_positive("lipschitz", value)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws sparse rows (:func:`sparse_rows_`) and sets the bias to zero."""
        sparse_rows_(self.weight, self.lipschitz)
        if self.bias is not None:
            self.bias.zero_()

    def projected_weight(self) -> Tensor:
        """The weight in use, P_r(W), in the shape of `weight`; differentiable.

        A row, flattened, has an L1 norm of at most r, up to one rounding.
        """
        keep = self._keeps_threshold()
        warm = self.threshold if keep else None
        rows, threshold = ops.l1_ball(self.weight.flatten(1), self.lipschitz, warm)
        if keep:
            self._buffers["threshold"] = threshold
        return rows.view_as(self.weight)

    def _keeps_threshold(self) -> bool:
        """Whether a pass starts from the last thresholds and leaves its own for the next.

        It writes them into `_buffers`, as an assignment does in the end, without the checks of one.
        A compiled graph keeps no state, nor does a transform of torch.func or a pass that carries
        tangents, and a captured graph must not read a buffer that a later pass replaces.
        """
        if not self.training or compiling() or transforming() or has_tangent(self.weight):
            return False
        on_gpu = self._buffers["threshold"].is_cuda  # type: ignore[union-attr]
        return not (on_gpu and torch.cuda.is_current_stream_capturing())

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not inside the block that froze this layer, and nothing would thaw it.
        return self.__dict__ | {"_frozen": None}

    def _freeze(self) -> Any:
        """What :func:`frozen` keeps of the layer."""
        return self.projected_weight()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A cast of the module would cast the thresholds too, and a move leaves them behind.
        super()._apply(fn, recurse)
        self.threshold = torch.zeros_like(self.threshold, dtype=torch.float64)
        self._frozen = None
        return self


# What a frozen linear layer is on the backends that keep more of it than a weight.
_FROZEN: dict[str, type[PackedLipschitzLinear] | type[ProjectedLipschitzLinear]] = {
    "cpp": PackedLipschitzLinear,
    "triton": ProjectedLipschitzLinear,
}


class LipschitzLinear(LipschitzLayer):
    r"""The Lipschitz layer :math:`y = \mathrm{GroupSort}_g(P_r(W) x + b)`, equation (1).

    :math:`P_r` projects each row of W onto the L1 ball of radius r, so the layer is r-Lipschitz in
    L-infinity. Under `torch.autocast` it takes what came out half and computes in its own dtype.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether to add b.
        lipschitz: r > 0.
        group_size: g, a divisor of `out_features`; None leaves the sort out.
        device: where the parameters live.
        dtype: the parameters' type.

    Shape:
        [..., in_features] -> [..., out_features].

    Raises:
        TypeError, ValueError: for arguments or an input of the wrong type or shape.

    Source: Anil, Lucas & Grosse 2019; Glazunov & Zarras 2023, section 4.2.2.

    Example:
        >>> import torch
        >>> layer = LipschitzLinear(4, 6, lipschitz=2.0, group_size=2)
        >>> layer(torch.rand(5, 4)).shape
        torch.Size([5, 6])
        >>> bool((layer.projected_weight().abs().sum(1) <= 2.0 * (1 + 2**-23)).all())
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        lipschitz: float = 1.0,
        group_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.in_features = check_count("in_features", in_features)
        self.out_features = check_count("out_features", out_features)
        shape = (self.out_features, self.in_features)
        super().__init__(shape, bias, lipschitz, group_size, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output for `x` [..., in_features]."""
        # As attributes they would each go through Module.__getattr__, which takes microseconds.
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        if weight is None or bias is None:  # parametrized, or a layer without a bias
            weight, bias = self.weight, self.bias
        if not fits_rows(x, weight):
            if _made_half(x, weight):
                return self.forward(x.to(weight.dtype))
            check_tensor("x", x, min_dim=1)
            check_like("x", x, "weight", weight)
            raise ValueError(f"x must have {self.in_features} features, got {describe(x)}")
        if self._frozen is not None and not (transforming() or needs_grad(x, weight, bias)):
            y = self._frozen_forward(x)
            if y is not None:
                return y
        keep = self._keeps_threshold()
        warm = self._buffers["threshold"] if keep else None
        y, threshold = ops.lipschitz_linear(x, weight, bias, self._lipschitz, self.group_size, warm)
        if keep and threshold is not warm:
            self._buffers["threshold"] = threshold
        return y

    def packed(self) -> PackedLipschitzLinear:
        """The layer as it is now on the C++ backend, callable on rows without autograd."""
        return PackedLipschitzLinear(
            self.weight, self.bias, self._lipschitz, self.group_size, self.threshold
        )

    def _freeze(self) -> Tensor | PackedLipschitzLinear | ProjectedLipschitzLinear:
        backend = self._backend()
        if backend == "cpp":
            return self.packed()
        if backend == "triton":
            return ProjectedLipschitzLinear(
                self.weight, self.bias, self._lipschitz, self.group_size
            )
        return self.projected_weight()

    def _backend(self) -> str:
        return choose("lipschitz_linear", self.weight)

    def _frozen_forward(self, x: Tensor) -> Tensor | None:
        """The output by the frozen weight, or None where that would round differently.

        A weight packed for one backend is not the product of another, and a compiled graph holds
        ops.
        """
        fixed, backend = self._frozen, self._backend()
        rows = x.reshape(-1, self.in_features)
        kind = _FROZEN.get(backend)
        if kind is not None and isinstance(fixed, kind) and not compiling():
            y = fixed(rows)
        elif isinstance(fixed, Tensor) and backend == "reference":
            with without_autocast(x.device):
                y = linear(rows, fixed, self.bias)
            y = y if self.group_size is None else ops.group_sort(y, self.group_size, -1)
        else:
            return None
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, lipschitz={self.lipschitz:g}, "
            f"group_size={self.group_size}"
        )


class LipschitzConv2d(LipschitzLayer):
    r"""A convolution by equation (1): each output filter, flattened, is a row of W.

    Every output is one row's product with a patch of the zero-padded input, so with any stride
    and any padding the layer is r-Lipschitz in L-infinity. GroupSort runs over channels. Under
    `torch.autocast` it computes in its own dtype, as :class:`LipschitzLinear` does.

    Args:
        in_channels: channels of the input.
        out_channels: filters.
        kernel_size: height and width of a filter, or one number for both.
        stride: steps between patches, likewise.
        padding: zeros added on each side, likewise.
        bias: whether to add b.
        lipschitz: r > 0.
        group_size: g, a divisor of `out_channels`; None leaves the sort out.
        device: where the parameters live.
        dtype: the parameters' type.

    Shape:
        [B, in_channels, H, W] -> [B, out_channels, H', W'] with
        H' = floor((H + 2 padding - kernel_size) / stride) + 1, and W' likewise.

    Raises:
        TypeError, ValueError: for arguments or an input of the wrong type or shape.

    Source: Anil, Lucas & Grosse 2019; Glazunov & Zarras 2023, section 4.2.2.

    Example:
        >>> import torch
        >>> layer = LipschitzConv2d(1, 4, kernel_size=3, stride=2, padding=1, group_size=2)
        >>> layer(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 4, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        lipschitz: float = 1.0,
        group_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.in_channels = check_count("in_channels", in_channels)
        self.out_channels = check_count("out_channels", out_channels)
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.padding = _pair("padding", padding, 0)
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        super().__init__(shape, bias, lipschitz, group_size, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output for `x` [B, in_channels, H, W]."""
        if isinstance(x, Tensor) and autocasting(x.device):
            wide = x.to(self.weight.dtype) if _made_half(x, self.weight) else x
            with without_autocast(x.device):
                return self.forward(wide)
        check_tensor("x", x, dim=4)
        check_like("x", x, "weight", self.weight)
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x must have {self.in_channels} channels, got {describe(x)}")
        fixed = None if transforming() or needs_grad(self.weight) else self._frozen
        weight = self.projected_weight() if fixed is None else fixed
        y = conv2d(x, weight, self.bias, self.stride, self.padding)
        return y if self.group_size is None else ops.group_sort(y, self.group_size, 1)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}, "
            f"lipschitz={self.lipschitz:g}, group_size={self.group_size}"
        )


def _made_half(x: object, weight: Tensor) -> bool:
    """Whether autocast made `x` half on its way here: the layers keep their precision under it."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float16, torch.bfloat16):
        return False
    return x.dtype != weight.dtype and autocasting(x.device)


def _pair(name: str, value: int | tuple[int, int], minimum: int) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
        first, second = value
        return check_count(name, first, minimum), check_count(name, second, minimum)
    return check_count(name, value, minimum), check_count(name, value, minimum)
