"""The choice of backend, and what happens where one is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

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


def _gradient(op: str) -> torch.Tensor:
    """What to call backward() on: the op ran with gradients recorded."""
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(6, 8, requires_grad=True)
    loc = torch.nn.functional.normalize(x, dim=-1)
    results = {
        "group_sort": lambda: group_sort(x, 2),
        "l1_ball": lambda: lipvae.functional.project_l1_ball(weight, 1.0),
        "lipschitz_linear": lambda: lipvae.functional.lipschitz_linear(x, weight, None, 1.0, 2),
        "importance": lambda: lipvae.functional.importance_log_likelihood(
            x[None], torch.rand(4, 8), "bernoulli"
        ),
        "vmf": lambda: lipvae.functional.sample_vmf(loc, x.square().sum(-1) + 1, (3,)),
    }
    result = results[op]()
    return (result[0] if isinstance(result, tuple) else result).sum()


# The others leave gradients to torch's operations.
@pytest.mark.parametrize("op", ["group_sort", "l1_ball", "lipschitz_linear", "importance", "vmf"])
def test_a_backward_pass_keeps_its_backend_on_another_thread(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lipvae.backend("reference"):
        total = _gradient(op)
    chosen: list[str | None] = []

    def noting(name: str, tensor: torch.Tensor, *, kernel: bool = True) -> str:
        chosen.append(_backend.requested())
        return choose(name, tensor, kernel=kernel)

    choose = _backend.choose
    module = sys.modules[f"lipvae.ops.{op}"]
    monkeypatch.setattr(module, "choose", noting)
    # As autograd does for CUDA tensors.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(total.backward).result()
        assert pool.submit(_backend.requested).result() is None
    assert chosen
    assert set(chosen) == {"reference"}


def test_an_old_triton_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(__version__="3.2.0")
    monkeypatch.setitem(sys.modules, "triton", old)
    found = _backend.triton_availability.__wrapped__()
    assert found.module is None
    assert "3.2.0 is too old" in found.reason


@pytest.mark.parametrize(
    ("capability", "precision", "dtype", "expected"),
    [
        ((7, 5), "highest", torch.float16, "reference"),
        ((8, 0), "highest", torch.float16, "triton"),
        ((9, 0), "highest", torch.bfloat16, "triton"),
        ((7, 5), "high", torch.float32, "reference"),
        ((9, 0), "highest", torch.float32, "reference"),
        ((9, 0), "high", torch.float32, "triton"),
    ],
)
def test_products_need_the_matrix_units_that_triton_uses(
    capability: tuple[int, int],
    precision: str,
    dtype: torch.dtype,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(_backend, "triton_availability", lambda: _backend.Availability(sys, ""))
    _backend._from_ampere_on.cache_clear()
    tensor = SimpleNamespace(device=torch.device("cuda:0"), dtype=dtype, is_cpu=False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for op in ("lipschitz_linear", "importance_linear"):
            assert _backend.choose(op, tensor) == expected
            with lipvae.backend("triton"):
                assert _backend.choose(op, tensor) == "triton"
        for op in ("l1_ball", "group_sort", "importance"):
            assert _backend.choose(op, tensor) == "triton"
    finally:
        torch.set_float32_matmul_precision(before)
        _backend._from_ampere_on.cache_clear()
