"""Evaluation mode of models that several threads may score at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from torch import nn

from lipvae._walk import modules

_LOCK = threading.Lock()

# Modules that were found in training mode, and how many blocks keep them out of it.
_HELD: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module's own mode again after the last such block."""
    with _LOCK:
        others = bool(_HELD)
        held = [m for m in modules(model) if m.training or (others and m in _HELD)]
        for module in held:
            _HELD[module] = _HELD.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            for module in held:
                _HELD[module] -= 1
                if not _HELD[module]:
                    del _HELD[module]
                    module.training = True
