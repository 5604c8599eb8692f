"""Makes `bench` importable: it is not installed, and lives in the checkout alone.

The tests may judge an installed lipvae, so no path of the checkout is added to the search; only
this one package is taken from there.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "bench"

if not (FOLDER / "__init__.py").exists():
    pytest.skip("bench/ is part of the checkout only", allow_module_level=True)
if "bench" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "bench", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bench"])
