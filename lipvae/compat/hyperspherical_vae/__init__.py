"""The interface of s-vae-pytorch's package ``hyperspherical_vae``.

A script needs its import changed, and no more::

    from lipvae.compat.hyperspherical_vae.distributions import HypersphericalUniform, VonMisesFisher

or, without touching the script, :func:`install` before it is run.
"""

from __future__ import annotations

import sys

from lipvae.compat.hyperspherical_vae import distributions
from lipvae.compat.hyperspherical_vae.distributions import HypersphericalUniform, VonMisesFisher

__all__ = ["HypersphericalUniform", "VonMisesFisher", "distributions", "install"]


def install() -> None:
    """Makes ``import hyperspherical_vae`` find this package in the running process.

    Raises:
        RuntimeError: if another package of that name is imported already.
    """
    ours = sys.modules[__name__]
    if sys.modules.setdefault("hyperspherical_vae", ours) is not ours:
        raise RuntimeError("another hyperspherical_vae is imported already")
    sys.modules["hyperspherical_vae.distributions"] = distributions
