"""The law of t = 1 - <mu, x> under vMF(mu, kappa), by quadrature over the angle; float64.

Shares no formula with lipvae: no Bessel function, expansion or sampler, only the density
sin(phi)^(m-2) exp(kappa cos(phi)) of the angle.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

DIMENSIONS = (2, 3, 5, 10, 50, 70, 200, 1000, 4096)
CONCENTRATIONS = (0.0, 1e-3, 0.1, 1.0, 10.0, 12.0, 50.0, 100.0, 1e4, 1e6, 1e8)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """Mean and variance of t, and the distribution function of the angle."""

    mean: float
    variance: float
    angle_cdf: PchipInterpolator
    low: float
    high: float

    def cdf(self, t: Array) -> Array:
        """P(T <= t)."""
        angle = 2 * np.arcsin(np.sqrt(np.clip(t / 2, 0, 1)))
        return np.clip(self.angle_cdf(np.minimum(angle, self.high)), 0, 1)


@functools.cache
def law(dim: int, kappa: float, cells: int = 4000) -> Law:
    """The law, by composite Gauss-Legendre quadrature where the density is not negligible."""
    power = dim - 2
    # cos of the mode solves power cos = kappa sin^2.
    cosine = 2 * kappa / (power + np.hypot(power, 2 * kappa)) if kappa + power else 0.0
    mode = np.arccos(min(cosine, 1.0)) if power else 0.0
    if power and kappa > 1e3 * power:
        mode = np.sqrt(power / kappa)
    bend = kappa * cosine + (power / np.sin(mode) ** 2 if power else 0.0)
    width = 1 / np.sqrt(bend) if bend > 0 else np.pi
    low, high = max(0.0, mode - 14 * width), min(np.pi, mode + 16 * width)
    edges = np.linspace(low, high, cells + 1)
    node, weight = np.polynomial.legendre.leggauss(5)
    step = (high - low) / cells
    angle = edges[:-1, None] + step * (node + 1) / 2
    t = 2 * np.sin(angle / 2) ** 2
    log_density = -kappa * t + (power * np.log(np.sin(angle)) if power else 0.0)
    mass = np.exp(log_density - log_density.max()) * weight
    mass /= mass.sum()
    mean = float((mass * t).sum())
    variance = float((mass * (t - mean) ** 2).sum())
    cdf = np.concatenate([[0.0], np.cumsum(mass.sum(1))])
    return Law(mean, variance, PchipInterpolator(edges, cdf), low, high)
