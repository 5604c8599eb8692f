"""Evaluation mode of models that several threads may score at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from torch import nn

from lipvae._holds import Holds
from lipvae._walk import modules


def _set_mode(module: nn.Module, holds: list[Any]) -> None:
    module.training = not holds


# Modules that were found in training mode, for as long as some block keeps them out of it.
_HOLDS = Holds(_set_mode)


def evaluating(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Evaluation mode inside the block; each module's own mode again after the last such block."""

    def wanted() -> Iterable[tuple[nn.Module, None]]:
        return [(m, None) for m in modules(model) if m.training or m in _HOLDS]

    return _HOLDS.holding(wanted)
