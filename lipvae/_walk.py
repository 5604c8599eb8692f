"""Modules and parameters of a model, without the names and sets that torch makes of them.

A scorer looks at both in every call, and for one image torch's iterators take as long as a layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules import module as everywhere


def modules(module: nn.Module) -> Iterator[nn.Module]:
    """The module and those in it, at any depth; one that is in two places comes twice."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from modules(child)


def first_parameter(module: nn.Module) -> nn.Parameter:
    """Any parameter, which tells the device and the dtype.

    Raises:
        ValueError: if there is none.
    """
    for part in modules(module):
        for parameter in part._parameters.values():
            if parameter is not None:
                return parameter
    raise ValueError(f"{type(module).__name__} has no parameters")


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's forward()."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in module.__dict__
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
    )
