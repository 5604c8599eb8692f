"""``lipvae doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import warnings

import torch
import typer
from rich.table import Table

import lipvae
from lipvae import _backend
from lipvae.cli import _common as common
from lipvae.data import cache_root

_CPU_DTYPES = (torch.float32, torch.float64)
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@common.user_errors
def doctor() -> None:
    """Say which backend each op will use here, and why.

    Exit code 1 if something is amiss: the C++ extension is missing, or a backend was requested
    that cannot run.

    **Examples**

    - `lipvae doctor`
    - `LIPVAE_BACKEND=reference lipvae doctor`
    """
    console = common.console()
    machine = Table(title="This machine", title_justify="left", show_header=False)
    machine.add_column(no_wrap=True)
    machine.add_column(overflow="fold")
    for name, value in _machine().items():
        machine.add_row(name, value)
    console.print(machine)
    ops = Table(title="Ops", title_justify="left")
    for column in ("op", "device", "dtype", "backend", "why"):
        ops.add_column(column, overflow="fold", no_wrap=column != "why")
    problems: list[str] = []
    for op in _backend.OPS:
        for device, dtype in _cases():
            backend, why = explain(op, device, dtype)
            ops.add_row(op, device, str(dtype).removeprefix("torch."), backend, why)
            if backend == "none":
                problems.append(f"{op} on {device} {dtype}: {why}")
    console.print(ops)
    if _backend.cpp_availability().module is None:
        problems.append(
            "the C++ extension is missing, CPU tensors take the slower reference: "
            f"{_backend.cpp_availability().reason}"
        )
    if problems:
        for problem in problems:
            common.say(f"amiss: {problem}")
        raise typer.Exit(1)
    console.print("all well")


def _cases() -> list[tuple[str, torch.dtype]]:
    cases = [("cpu", dtype) for dtype in _CPU_DTYPES]
    return cases + [("cuda", dtype) for dtype in _GPU_DTYPES]


def explain(op: str, device: str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend of an op on a device, and why; "none" where it would raise or nothing is there.

    Args:
        op: a name in `_backend.OPS`.
        device: "cpu" or "cuda".
        dtype: of the tensors.
    """
    if device == "cuda" and not torch.cuda.is_available():
        missing = "no CUDA or ROCm device here"
        why = _backend.obstacle("triton", torch.device("cuda"), dtype)
        return "-", f"{missing}; {why}" if why else f"{missing}; Triton is ready for one"
    requested = _backend.requested()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen = _backend.choose(op, torch.empty(0, device=device, dtype=dtype))
    except RuntimeError as error:
        return "none", str(error)
    if requested is not None:
        return chosen, "requested by LIPVAE_BACKEND"
    preferred = "triton" if device == "cuda" else "cpp"
    if chosen == preferred:
        return chosen, {"triton": "GPU tensors take Triton", "cpp": "CPU tensors take C++"}[chosen]
    where = torch.device(device)
    why = _backend.obstacle(preferred, where, dtype) or _backend.drawback(op, where, dtype)
    return chosen, why or "fallback"


def _machine() -> dict[str, str]:
    cpp = _backend.cpp_availability()
    extension = f"missing: {cpp.reason}"
    if cpp.module is not None:
        extension = f"{cpp.module.isa()} (built: {', '.join(cpp.module.available_isas())})"
    triton = _backend.triton_availability()
    kernels = f"not usable: {triton.reason}"
    if triton.module is not None:
        import triton as package

        kernels = f"{package.__version__}" + (", interpreting" if _backend.interpreting() else "")
    if triton.module is not None and not _backend.interpreting():
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        kernels += f", compiler {compiler or 'missing: set CC, or install gcc or clang'}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    extras = {"plot": "matplotlib", "parquet": "pyarrow"}
    return {
        "lipvae": lipvae.__version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "C++ extension": extension,
        "Triton": kernels,
        "GPUs": ", ".join(gpus) or "none",
        "requested backend": _backend.requested() or "none (automatic)",
        "data cache": str(cache_root()),
        "data sources": os.environ.get("LIPVAE_DATA_SOURCES") or "all",
        "extras": ", ".join(
            f"{name} {'yes' if importlib.util.find_spec(module) else 'no'}"
            for name, module in extras.items()
        ),
    }
