"""The interpreter suite: Triton decides when it is imported, so this folder needs its own process.

Run with ``TRITON_INTERPRET=1 pytest tests/kernels``; any other run leaves the folder out.
"""

from __future__ import annotations

import importlib.util
import os

if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
