"""Lipschitz layers, their composition, and certificates of what they compute."""

from lipvae.nn.certificate import Certificate, certify
from lipvae.nn.freezing import frozen
from lipvae.nn.layers import GroupSort, LipschitzConv2d, LipschitzLinear, sparse_rows_
from lipvae.nn.sequential import LipschitzSequential, lipschitz_layers, set_lipschitz

__all__ = [
    "Certificate",
    "GroupSort",
    "LipschitzConv2d",
    "LipschitzLinear",
    "LipschitzSequential",
    "certify",
    "frozen",
    "lipschitz_layers",
    "set_lipschitz",
    "sparse_rows_",
]
