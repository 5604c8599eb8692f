"""The choice of backend, and what happens where one is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lipvae
from lipvae import _backend
from lipvae.functional import group_sort


def test_cpu_tensors_take_the_extension() -> None:
    for dtype in (torch.float32, torch.float64):
        assert _backend.choose("group_sort", torch.ones(2, dtype=dtype)) == "cpp"


def test_the_innermost_request_wins_and_ends_with_its_block() -> None:
    x = torch.ones(2)
    with lipvae.backend("reference"):
        assert _backend.choose("group_sort", x) == "reference"
        with lipvae.backend("cpp"):
            assert _backend.choose("group_sort", x) == "cpp"
        assert _backend.choose("group_sort", x) == "reference"
    with pytest.raises(KeyError), lipvae.backend("reference"):
        raise KeyError
    assert _backend.requested() is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("reference", "reference"),
        ("auto", "cpp"),
        ("", "cpp"),
        ("cuda", "ValueError: LIPVAE_BACKEND must be one of reference, cpp, triton, got 'cuda'"),
    ],
)
def test_environment_variable(value: str, said: str) -> None:
    program = "import lipvae._backend as b, torch; print(b.choose('group_sort', torch.ones(2)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LIPVAE_BACKEND": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout + done.stderr).splitlines()[-1] == said


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="backend must be one of reference, cpp, triton, got 'c'"):
        lipvae.backend("c")


@pytest.mark.skipif(_backend.interpreting(), reason="the interpreter takes CPU tensors")
def test_a_request_that_cannot_be_met_raises() -> None:
    with lipvae.backend("triton"), pytest.raises(RuntimeError, match="takes CUDA and ROCm tensors"):
        group_sort(torch.ones(2))
    with lipvae.backend("cpp"), pytest.raises(RuntimeError, match="takes CPU tensors, got meta"):
        group_sort(torch.ones(2, device="meta"))


PROGRAM = """
import sys, warnings
sys.modules["lipvae._C"] = None  # an editable install would find the built one
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lipvae, torch
print(*(str(w.message) for w in caught if w.category is RuntimeWarning), sep="\\n")
print(lipvae.functional.group_sort(torch.tensor([2.0, 1.0])).tolist())
with lipvae.backend("cpp"):
    try:
        lipvae.functional.group_sort(torch.tensor([2.0, 1.0]))
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.parametrize("checkout", [True, False])
def test_without_the_extension_an_import_says_what_to_do(tmp_path: Path, checkout: bool) -> None:
    source = Path(lipvae.__file__).parent
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(source, tmp_path / "lipvae", ignore=ignored)
    if checkout:
        (tmp_path / "csrc").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    warning, answer, error = done.stdout.splitlines()
    assert "the C++ extension, cannot be imported" in warning
    assert ("pip install -e ." if checkout else "--force-reinstall") in warning
    assert answer == "[1.0, 2.0]"
    assert error.startswith("group_sort: backend 'cpp' was requested, but lipvae._C cannot be")
