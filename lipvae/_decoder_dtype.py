"""16-bit types that a scorer may round a decoder to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from lipvae.models import VAE

DECODER_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products of a 16-bit type on this CPU."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def check_decoder_dtype(dtype: torch.dtype | None, members: Sequence[VAE]) -> torch.dtype | None:
    """What :class:`lipvae.Scorer` makes of its argument; warns in the name of its caller."""
    if dtype is None:
        return None
    if dtype not in DECODER_DTYPES.values():
        raise ValueError(
            f"decoder_dtype must be None, {' or '.join(map(str, DECODER_DTYPES.values()))}, "
            f"got {dtype!r}"
        )
    if any(getattr(model, "decoder_lipschitz", None) is not None for model in members):
        raise ValueError(
            f"decoder_dtype must be None for a Lipschitz decoder, got {dtype}: rounding would "
            "break its constant"
        )
    on_cpu = next(members[0].parameters()).is_cpu
    if on_cpu and not cpu_multiplies(dtype):
        warnings.warn(
            f"this CPU has no instructions for {dtype}: decoder_dtype makes scores slower here",
            RuntimeWarning,
            stacklevel=3,
        )
    return dtype
