"""Compositions of Lipschitz layers, equation (2)."""

from __future__ import annotations

import torch
from torch import nn

from lipvae._validate import check_positive
from lipvae._walk import modules as walk
from lipvae.nn.layers import LipschitzLayer

# A projected row's sum exceeds the radius by at most one rounding of float32.
_ROUNDING = 2.0**-23


def lipschitz_layers(*modules: nn.Module) -> list[LipschitzLayer]:
    """The Lipschitz layers in `modules`, at any depth, in order; one that is there twice, twice.

    Example:
        >>> from lipvae.nn import LipschitzLinear
        >>> shared = LipschitzLinear(4, 4)
        >>> len(lipschitz_layers(nn.Sequential(shared, nn.Sequential(shared))))
        2
    """
    return [
        layer for module in modules for layer in walk(module) if isinstance(layer, LipschitzLayer)
    ]


def layer_radius(lipschitz: float, layers: int) -> float:
    """r = M^(1/K), rounded down so that K layers stay at most M although rows may round up.

    Args:
        lipschitz: M > 0.
        layers: K >= 1.

    Returns:
        r with (r (1 + 2^-23))^K <= M in real numbers.
    """
    root = check_positive("lipschitz", lipschitz) ** (1 / layers)
    # One part in 2^46 covers the roundings of the root and of the products.
    return root / (1 + _ROUNDING) * (1 - 2.0**-46)


@torch.no_grad()
def set_lipschitz(layers: list[LipschitzLayer], lipschitz: float) -> None:
    """Gives each of K layers the radius r = M^(1/K), so that their composition is M-Lipschitz.

    The radius is rounded down such that the composition's constant is at most M in spite of
    rounding. The raw weights scale with the radius, P_cr(c W) = c P_r(W), so a fresh layer stays
    inside its ball.

    Args:
        layers: layers that follow one another, with 1-Lipschitz maps between them. One that comes
            twice counts twice.
        lipschitz: M > 0.
    """
    if not layers:
        raise ValueError("layers must hold at least one Lipschitz layer, got none")
    radius = layer_radius(lipschitz, len(layers))
    for layer in dict.fromkeys(layers):
        layer.weight.mul_(radius / layer.lipschitz)
        layer.lipschitz = radius


class LipschitzSequential(nn.Sequential):
    """Layers in sequence that are M-Lipschitz together, equation (2).

    Each of the K Lipschitz layers inside, at any depth, gets the radius r = M^(1/K), rounded
    down; its raw weight scales along (see :func:`set_lipschitz`). A layer that stands in two places
    counts twice.

    Args:
        *layers: modules; those that are not Lipschitz layers must be 1-Lipschitz (GroupSort,
            Flatten, Unflatten, Identity). :func:`lipvae.nn.certify` refuses any other.
        lipschitz: M > 0.

    Raises:
        ValueError: if there is no Lipschitz layer, or `lipschitz` is not positive.

    Source: Glazunov & Zarras 2023, section 4.2.2.

    Example:
        >>> from lipvae.nn import LipschitzLinear
        >>> net = LipschitzSequential(
        ...     LipschitzLinear(8, 4, group_size=2), LipschitzLinear(4, 2), lipschitz=4.0
        ... )
        >>> round(net[0].lipschitz, 6), round(net[1].lipschitz, 6)
        (2.0, 2.0)
    """

    def __init__(self, *layers: nn.Module, lipschitz: float) -> None:
        super().__init__(*layers)
        self.lipschitz = check_positive("lipschitz", lipschitz)
        inside = lipschitz_layers(*layers)
        if not inside:
            raise ValueError("layers must hold at least one Lipschitz layer, got none")
        set_lipschitz(inside, lipschitz)

    def extra_repr(self) -> str:
        """The bound."""
        return f"lipschitz={self.lipschitz:g}"
