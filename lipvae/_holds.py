"""What threads inside a block want of a module that others share, and what holds after the last."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn


class Holds:
    """Values that blocks hold a module to, the newest last.

    A forked child keeps those of the thread that forked: no other will leave its block there.

    Args:
        show: called with a module and the values that it is held to whenever these change, and
            with none after the last block.
    """

    def __init__(self, show: Callable[[nn.Module, list[Any]], None]) -> None:
        self._show = show
        self._held: dict[nn.Module, list[_Hold]] = {}
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_other_threads)

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._held

    @contextlib.contextmanager
    def holding(self, wanted: Callable[[], Iterable[tuple[nn.Module, Any]]]) -> Iterator[None]:
        """Holds the modules to the values that `wanted` gives, which runs under the lock."""
        owner = threading.get_ident()
        with self._lock:
            holds = [(module, _Hold(owner, value)) for module, value in wanted()]
            for module, hold in holds:
                self._set(module, [*self._held.get(module, ()), hold])
        try:
            yield
        finally:
            with self._lock:
                for module, hold in holds:
                    self._set(module, [h for h in self._held.get(module, ()) if h is not hold])

    def _set(self, module: nn.Module, holds: list[_Hold]) -> None:
        if holds:
            self._held[module] = holds
        else:
            self._held.pop(module, None)
        self._show(module, [hold.value for hold in holds])

    def _forget_other_threads(self) -> None:
        self._lock = threading.Lock()  # the old one in any state
        owner = threading.get_ident()
        for module, holds in list(self._held.items()):
            self._set(module, [hold for hold in holds if hold.owner == owner])


class _Hold:
    """One block's, known by its identity."""

    def __init__(self, owner: int, value: Any) -> None:
        self.owner, self.value = owner, value
