"""Which backend an op runs on: reference, C++ or Triton."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

NAMES = ("reference", "cpp", "triton")
OPS = (
    "l1_ball",
    "group_sort",
    "lipschitz_linear",
    "normal_samples",
    "importance",
    "importance_linear",
    "importance_statistics",
    "vmf",
)

# Those before it do not compile the kernels of GroupSort.
_OLDEST_TRITON = (3, 4)

_PRODUCTS = ("lipschitz_linear", "importance_linear")

_CPP_DTYPES = (torch.float32, torch.float64)
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_requested: ContextVar[str | None] = ContextVar("lipvae_backend", default=None)


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def backend(name: str) -> contextlib.AbstractContextManager[None]:
    """Runs every op inside the block on one backend.

    Args:
        name: "reference" (plain torch, any device), "cpp" (CPU tensors) or "triton" (CUDA and
            ROCm tensors; CPU tensors under ``TRITON_INTERPRET=1``).

    Raises:
        ValueError: for another name.
        RuntimeError: from an op inside the block that this backend cannot run here.

    The choice holds for the current thread, and for the backward pass of what was computed inside
    (but not of what torch.compile made of it). The environment variable ``LIPVAE_BACKEND`` makes
    the same choice for the whole process; it is read once, at import.

    Example:
        >>> import lipvae, torch
        >>> with lipvae.backend("reference"):
        ...     lipvae.functional.group_sort(torch.tensor([2.0, 1.0]))
        tensor([1., 2.])
    """
    return _requesting(_checked(name, "backend"))


@contextlib.contextmanager
def _requesting(name: str) -> Iterator[None]:
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def requested() -> str | None:
    """The backend asked for by :func:`backend` or ``LIPVAE_BACKEND``, or None for automatic."""
    return _requested.get() or _process_wide


def _from_environment() -> str | None:
    name = os.environ.get("LIPVAE_BACKEND", "")
    return None if name in ("", "auto") else _checked(name, "LIPVAE_BACKEND")


# Read once: an op asks at every call, and looking into the environment takes a microsecond.
_process_wide = _from_environment()


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be loaded here, and why not."""

    module: ModuleType | None
    reason: str


@functools.cache
def cpp_availability() -> Availability:
    """The C++ extension, or why it is missing."""
    try:
        return Availability(importlib.import_module("lipvae._C"), "")
    except ImportError as error:
        return Availability(None, str(error))


@functools.cache
def triton_availability() -> Availability:
    """The Triton kernels, or why they are missing."""
    try:
        version: str = importlib.import_module("triton").__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TRITON:
            return Availability(None, f"version {version} is too old: 3.4 comes with torch 2.8")
        return Availability(importlib.import_module("lipvae.kernels"), "")
    except ImportError as error:
        return Availability(None, str(error))


def interpreting() -> bool:
    """Whether Triton interprets its kernels on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def warn_without_extension(package: Path) -> None:
    """Says, at import, that the C++ extension is missing and what to do about it.

    Args:
        package: the folder that lipvae was imported from.
    """
    found = cpp_availability()
    if found.module is not None:
        return
    if (package.parent / "csrc").is_dir():
        cure = (
            f"This lipvae is the checkout in {package.parent}, where nothing was built. Build it "
            "with `pip install -e .`, or start Python in another folder to use an installed lipvae."
        )
    else:
        cure = "Reinstall with `pip install --force-reinstall --no-deps lipvae`."
    warnings.warn(
        f"lipvae._C, the C++ extension, cannot be imported ({found.reason}), so CPU tensors take "
        f"the slower reference. {cure} `lipvae doctor` shows what each op uses.",
        RuntimeWarning,
        stacklevel=3,
    )


def obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot take tensors of this device and dtype, or None if it can."""
    if name == "reference":
        return None
    if name == "cpp":
        if device.type != "cpu":
            return f"the C++ backend takes CPU tensors, got {device}"
        if dtype not in _CPP_DTYPES:
            return f"the C++ backend takes float32 and float64, got {dtype}"
        found = cpp_availability()
        return None if found.module else f"lipvae._C cannot be imported ({found.reason})"
    if device.type != "cuda" and not (interpreting() and device.type == "cpu"):
        return f"the Triton backend takes CUDA and ROCm tensors, got {device}"
    if dtype not in _TRITON_DTYPES:
        return f"the Triton backend takes float32, float16 and bfloat16, got {dtype}"
    if device.type == "cuda" and (older := _too_old(device)):
        return older
    found = triton_availability()
    return None if found.module else f"Triton cannot be used ({found.reason})"


@functools.cache
def _too_old(device: torch.device) -> str | None:
    """Why Triton compiles nothing for a GPU, or None."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 7:
        return None
    return f"Triton compiles for compute capability 7.0 and above, {device} has {major}.{minor}"


def drawback(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an op that has a kernel for such tensors is left to torch unless asked for, or None.

    Triton's products are left to the GPU's matrix units. Without them, cuBLAS has several times
    their speed: they wait for shared memory (docs/performance.md).
    """
    if device.type != "cuda" or op not in _PRODUCTS or torch.version.hip is not None:
        return None
    if dtype == torch.float32 and not (tf32_allowed() and _from_ampere_on(device)):
        return "products of float32 without TF32 are left to cuBLAS, between kernels of ours"
    if dtype in (torch.float16, torch.bfloat16) and not _from_ampere_on(device):
        return "products of 16 bits are left to torch on GPUs before Ampere"
    return None


@functools.cache
def _from_ampere_on(device: torch.device) -> bool:
    """Whether Triton's products use an NVIDIA GPU's matrix units for halves and TF32."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def tf32_allowed() -> bool:
    """Whether torch may multiply float32 as TF32, by whichever of its two switches was used."""
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # of newer releases
    if precision is not None:
        return bool(precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def choose(op: str, tensor: Tensor, *, kernel: bool = True) -> str:
    """The backend on which `op` will run for `tensor`.

    Args:
        op: the op's name, for messages.
        tensor: the tensor whose device and dtype decide.
        kernel: False where no kernel covers the arguments (a group size without a network).

    Raises:
        RuntimeError: if the requested backend cannot run the op on this tensor.
    """
    name = requested()
    if name is None and kernel and tensor.is_cpu and tensor.dtype in _CPP_DTYPES:
        return "cpp" if cpp_availability().module else "reference"
    if name is not None:
        if name == "reference":
            return name
        why = obstacle(name, tensor.device, tensor.dtype)
        if why is None and not kernel:
            why = "it has no kernel for these arguments"
        if why is not None:
            raise RuntimeError(f"{op}: backend {name!r} was requested, but {why}")
        return name
    if not kernel:
        return "reference"
    name = "triton" if tensor.device.type == "cuda" else "cpp"
    why = obstacle(name, tensor.device, tensor.dtype) or drawback(op, tensor.device, tensor.dtype)
    return name if why is None else "reference"


def kernel_module(op: str) -> ModuleType:
    """The Triton module of an op, ``lipvae.kernels.<op>``."""
    return importlib.import_module(f"lipvae.kernels.{op}")


def cpp_module() -> ModuleType:
    """The C++ extension.

    Raises:
        RuntimeError: if it cannot be imported.
    """
    found = cpp_availability()
    if found.module is None:
        raise RuntimeError(f"lipvae._C cannot be imported ({found.reason})")
    return found.module
