"""The name of the hardware that a result was computed on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch


def device_name(device: torch.device | str) -> str:
    """The GPU's name, or the CPU's model as far as the system tells it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()
