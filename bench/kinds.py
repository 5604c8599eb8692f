"""The ways in which a GPU multiplies: float32, TF32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The tensors' dtype, and what torch may make of float32.
KINDS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
}


def multiplying(kind: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` with products of this kind; float32 is how torch comes."""
    if kind == "float32":
        return run

    def call() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(KINDS[kind][1])
        try:
            return run()
        finally:
            torch.set_float32_matmul_precision(before)

    return call
