"""The Lipschitz layer with GroupSort of pairs, and its floor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

from bench.peers.group_sort import deel, min_max
from bench.peers.l1_ball import newton_projection_exact_gradient, sort_projection


class ReluLayer(nn.Module):
    """nn.Linear and ReLU: what the layer costs without any constraint."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        return self.linear(x).relu()


class SortLayer(nn.Module):
    """Sort-based projection (LNets) with deel-torchlip's GroupSort."""

    def __init__(self, weight: Tensor, bias: Tensor, radius: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.radius, self.sort = radius, deel(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        return self.sort(linear(x, sort_projection(self.weight, self.radius), self.bias))


class NewtonLayer(nn.Module):
    """Newton's projection with min and max, for eager mode and for torch.compile."""

    def __init__(self, weight: Tensor, bias: Tensor, radius: float, steps: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.radius, self.steps = radius, steps

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        weight = newton_projection_exact_gradient(self.weight, self.radius, self.steps)
        return min_max(linear(x, weight, self.bias), 2)
