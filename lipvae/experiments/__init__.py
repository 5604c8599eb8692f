"""The tables and figures of the paper, rebuilt and set beside its figures."""

from lipvae.experiments.images import Images
from lipvae.experiments.runner import Runner
from lipvae.experiments.running import EXPERIMENTS, Written, reproduce
from lipvae.experiments.settings import FULL, QUICK, Budget, Pair, parse_pairs

__all__ = [
    "EXPERIMENTS",
    "FULL",
    "QUICK",
    "Budget",
    "Images",
    "Pair",
    "Runner",
    "Written",
    "parse_pairs",
    "reproduce",
]
