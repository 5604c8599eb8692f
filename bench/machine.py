"""What a measurement ran on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import lipvae
from lipvae._backend import cpp_availability
from lipvae._device_name import device_name

PACKAGES = ("torch", "numpy", "scipy", "triton", "deel-torchlip", "pyod")


def cache_bytes() -> int:
    """Size of the largest CPU cache; 32 MiB where the system does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG])", file.read_text().strip())
        if found:
            sizes.append(int(found.group(1)) * 1024 ** ("KMG".index(found.group(2)) + 1))
    return max(sizes, default=32 * 1024**2)


def versions() -> dict[str, str]:
    """Versions of everything whose speed is measured."""
    found = {"lipvae": lipvae.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # with its build, which a package's version may leave out
    return found


def describe(device: str) -> dict[str, Any]:
    """Fields that every row of one run shares."""
    module = cpp_availability().module
    return {
        "device": device,
        "device_name": device_name(device),
        "cores": os.cpu_count(),
        "cache_bytes": cache_bytes(),
        "threads": torch.get_num_threads(),
        "isa": module.isa() if module else None,
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
