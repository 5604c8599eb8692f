"""What the ops share."""

from __future__ import annotations

import torch
from torch import Tensor

_CPP_DTYPE_CODES = {torch.float32: 0, torch.float64: 1}


def dtype_code(tensor: Tensor) -> int:
    """The C++ extension's code of a dtype."""
    return _CPP_DTYPE_CODES[tensor.dtype]


def compiling() -> bool:
    """Whether torch.compile or torch.export traces this call."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient with respect to any of the tensors."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110 (any() with a generator takes twice as long)
        if tensor is not None and tensor.requires_grad:
            return True
    return False
