"""lipvae._C called as the ops call it: what it refuses, and what must not change its results."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_as_accurate
from torch import Tensor

from lipvae import reference
from lipvae.ops.importance_statistics import STATE
from lipvae.statistics import STATISTICS

_C = pytest.importorskip("lipvae._C")

Outputs = tuple[Tensor, ...]
DTYPES = [torch.float32, torch.float64]
FAMILIES = list(reference.FAMILIES)
COMPARATORS = {2: 1, 4: 5, 8: 19}


def code(dtype: torch.dtype) -> int:
    return DTYPES.index(dtype)


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


# Each op below is large enough for seven threads, which a call gets from 256 kB a thread on, and
# returns its outputs with float64 truth for those of them that have one.


def l1_ball(dtype: torch.dtype, threads: int) -> tuple[Outputs, list[Tensor | None]]:
    weight, grad = random(523, 517, dtype=dtype), random(523, 517, dtype=dtype, scale=2.0)
    out, grad_weight = torch.empty_like(weight), torch.empty_like(weight)
    threshold, alone = torch.empty(2, 523, dtype=torch.float64)
    rows, cols = weight.shape
    at = [tensor.data_ptr() for tensor in (weight, grad, out, grad_weight, threshold, alone)]
    _C.l1_ball_forward(at[0], rows, cols, 3.0, 0, at[2], at[4], code(dtype), threads)
    _C.l1_ball_threshold(at[0], rows, cols, 3.0, 0, at[5], code(dtype), threads)
    _C.l1_ball_backward(at[1], at[0], at[4], at[3], rows, cols, code(dtype), threads)
    truth = reference.project_l1_ball(weight.double(), 3.0)
    slope = reference.project_l1_ball_backward(grad.double(), weight.double(), 3.0)
    assert torch.equal(threshold, alone)
    return (out, grad_weight, threshold), [truth, slope, None]


def group_sort(
    dtype: torch.dtype, threads: int, group_size: int, inner: int
) -> tuple[Outputs, list[Tensor | None]]:
    outer, n = (2048, 264) if inner == 1 else (61, 264)
    x = random(outer, n, inner, dtype=dtype)
    grad = random(outer, n, inner, dtype=dtype, scale=2.0)
    y, grad_x = torch.empty_like(x), torch.empty_like(x)
    width = (n // group_size * inner + 7) // 8
    swaps = torch.empty(COMPARATORS[group_size], outer, width, dtype=torch.uint8)
    tail = (outer, n, inner, group_size, code(dtype), threads)
    _C.group_sort_forward(x.data_ptr(), y.data_ptr(), swaps.data_ptr(), *tail)
    _C.group_sort_backward(grad.data_ptr(), swaps.data_ptr(), grad_x.data_ptr(), *tail)
    truth = reference.group_sort(x.double(), group_size, 1)
    slope = reference.group_sort_backward(grad.double(), x.double(), group_size, 1)
    return (y, grad_x, swaps), [truth, slope, None]


def importance(
    dtype: torch.dtype, threads: int, family: str
) -> tuple[Outputs, list[Tensor | None]]:
    planes = {"gaussian": 2, "discretized_logistic": 2, "categorical256": 256}.get(family, 1)
    samples, batch, dim = (3, 31, 41) if planes == 256 else (13, 37, 1021)
    parameters = random(samples, batch, planes * dim, dtype=dtype, scale=0.3 if planes == 2 else 3)
    target = (torch.arange(batch * dim).remainder(256) / 255.0).to(dtype).view(batch, dim)
    grad_out = random(samples, batch, dtype=dtype)
    out, grad = torch.empty_like(grad_out), torch.empty_like(parameters)
    tail = (samples, batch, dim, FAMILIES.index(family), code(dtype), threads)
    _C.importance_forward(parameters.data_ptr(), target.data_ptr(), out.data_ptr(), *tail)
    _C.importance_backward(
        grad_out.data_ptr(), parameters.data_ptr(), target.data_ptr(), grad.data_ptr(), *tail
    )
    truth = reference.importance(parameters.double(), target.double(), family)
    slope = reference.importance_backward(
        grad_out.double(), parameters.double(), target.double(), family
    )
    return (out, grad), [truth, slope]


def pack(weight: Tensor, bias: Tensor, planes: int, threads: int) -> Tensor:
    width, dim = _C.panel_width(code(weight.dtype)), weight.shape[0] // planes
    panels = weight.new_empty(planes, -(-dim // width), 1 + weight.shape[1], width)
    at = [tensor.data_ptr() for tensor in (weight, bias, panels)]
    tail = (width, code(weight.dtype), threads)
    _C.linear_pack(*at, planes, dim, dim, weight.shape[1], *tail)
    return panels


def linear(dtype: torch.dtype, threads: int) -> tuple[Outputs, list[Tensor | None]]:
    rows, columns, inner = 403, 331, 517
    x, weight = random(rows, inner, dtype=dtype), random(columns, inner, dtype=dtype)
    bias, out = random(columns, dtype=dtype), torch.empty(rows, columns, dtype=dtype)
    panels = pack(weight, bias, 1, threads)
    x[:, ::2] = 0
    grouped = torch.empty_like(out)
    for together, y in ((1, out), (13, grouped)):
        tail = (panels.shape[-1], together, True, 0, code(dtype), threads)
        at = [tensor.data_ptr() for tensor in (x, panels, y)]
        _C.linear_forward(*at, rows, columns, inner, *tail)
    assert torch.equal(grouped, out)
    truth = torch.nn.functional.linear(x.double(), weight.double(), bias.double()).relu()
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=2000 * torch.finfo(dtype).eps)
    return (out, panels), [None, None]


def conv_transpose(dtype: torch.dtype, threads: int) -> tuple[Outputs, list[Tensor | None]]:
    images, size, (n_in, n_out) = 37, (7, 6), (19, 13)
    x = random(images, *size, n_in, dtype=dtype)
    weight, bias = random(n_in, n_out, 4, 4, dtype=dtype), random(n_out, dtype=dtype)
    taps = weight.permute(2, 3, 1, 0).reshape(-1, n_in).contiguous()
    panels = pack(taps, torch.zeros(len(taps), dtype=dtype), 1, threads)
    out = torch.empty(images, 2 * size[0], 2 * size[1], n_out, dtype=dtype)
    at = [tensor.data_ptr() for tensor in (x, panels, bias, out)]
    shapes = ((*size, n_in), tuple(out.shape[1:]), (4, 4), (2, 2), (1, 1))
    _C.conv_transpose_forward(*at, images, *shapes, panels.shape[-1], True, code(dtype), threads)
    truth = torch.nn.functional.conv_transpose2d(
        x.double().permute(0, 3, 1, 2), weight.double(), bias.double(), 2, 1
    ).relu()
    error = out.double().permute(0, 3, 1, 2) - truth
    assert error.abs().max() <= 500 * torch.finfo(dtype).eps
    return (out,), [None]


def lipschitz_linear(
    dtype: torch.dtype, threads: int, group_size: int
) -> tuple[Outputs, list[Tensor | None]]:
    rows, columns, inner = 403, 328, 517
    x, weight = random(rows, inner, dtype=dtype), random(columns, inner, dtype=dtype)
    bias, y = random(columns, dtype=dtype), torch.empty(rows, columns, dtype=dtype)
    threshold = torch.empty(columns, dtype=torch.float64)
    panels = torch.empty_like(pack(weight, bias, 1, threads))
    width = (columns // group_size + 7) // 8 if group_size else 0
    swaps = torch.empty(COMPARATORS.get(group_size, 0), rows, width, dtype=torch.uint8)
    at = [t.data_ptr() for t in (y, threshold, panels, swaps)]
    head = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), 1.7, 0)
    tail = (panels.shape[-1], group_size, code(dtype), threads)
    assert _C.lipschitz_linear_forward(*head, *at, False, rows, columns, inner, *tail) is None
    # What else it can be asked to leave out changes none of it, nor does the packed weight.
    alone, packed = torch.empty_like(y), torch.empty_like(y)
    _C.lipschitz_linear_forward(
        *head, alone.data_ptr(), at[1], 0, 0, False, rows, columns, inner, *tail
    )
    tail = (panels.shape[-1], 1, False, group_size, code(dtype), threads)
    at = [tensor.data_ptr() for tensor in (x, panels, packed)]
    _C.linear_forward(*at, rows, columns, inner, *tail)
    assert torch.equal(alone, y)
    assert torch.equal(packed, y)
    truth = reference.lipschitz_linear(
        x.double(), weight.double(), bias.double(), 1.7, group_size or None
    )
    return (y, threshold, panels, swaps), [truth, *(None,) * 3]


def importance_linear(
    dtype: torch.dtype, threads: int, family: str
) -> tuple[Outputs, list[Tensor | None]]:
    planes = {"gaussian": 2, "discretized_logistic": 2, "categorical256": 256}.get(family, 1)
    samples, batch, dim, inner = (3, 31, 11, 23) if planes == 256 else (13, 37, 101, 57)
    hidden = random(samples, batch, inner, dtype=dtype)
    weight = random(planes * dim, inner, dtype=dtype, scale=0.3 / inner**0.5)
    bias = random(planes * dim, dtype=dtype, scale=0.3)
    target = (torch.arange(batch * dim).remainder(256) / 255.0).to(dtype).view(batch, dim)
    panels = pack(weight, bias, planes, threads)
    by_image = hidden.relu_().transpose(0, 1).contiguous()
    total = torch.zeros(samples, batch, dtype=torch.float64)
    total_by_image = torch.zeros(batch, samples, dtype=torch.float64)
    sizes = samples, batch, dim, inner, panels.shape[-1]
    tail = FAMILIES.index(family), code(dtype), threads
    for rows, out in ((hidden, total), (by_image, total_by_image)):
        at = [tensor.data_ptr() for tensor in (rows, panels, target, out)]
        _C.importance_linear_forward(*at, *sizes, rows is by_image, *tail)
    assert torch.equal(total_by_image.t(), total)
    parameters = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    truth = reference.importance(parameters, target.double(), family)
    assert_as_accurate("importance_linear", total.to(dtype), truth)
    return (total,), [None]


def vmf(dtype: torch.dtype, threads: int) -> tuple[Outputs, list[Tensor | None]]:
    samples, rows, dim = 17, 401, 70
    loc = random(rows, dim, dtype=dtype)
    concentration = torch.linspace(0, 300, rows, dtype=dtype)
    out = torch.empty(samples, rows, dim, dtype=dtype)
    t = torch.empty(samples, rows, dtype=torch.float64)
    at = [tensor.data_ptr() for tensor in (loc, concentration, out, t)]
    _C.vmf_sample(*at, samples, rows, dim, 11, 3, False, code(dtype), threads)
    direction = loc.double() / loc.double().norm(dim=1, keepdim=True)
    assert_as_accurate("vmf", out.norm(dim=2), torch.ones(samples, rows).double())
    assert_as_accurate("importance", (1 - t).to(dtype), (out.double() * direction).sum(2))
    return (out, t), [None, None]


def normal_samples(dtype: torch.dtype, threads: int) -> tuple[Outputs, list[Tensor | None]]:
    b, k, m = 61, 130, 37
    loc, log_variance = (random(b, m, dtype=torch.float64, scale=s) for s in (3.0, 2.0))
    noise = random(k, m, dtype=torch.float64)
    z, ratio = torch.empty(b, k, m, dtype=dtype), torch.empty(b, k, dtype=torch.float64)
    at = [tensor.data_ptr() for tensor in (loc, log_variance, noise, z, ratio)]
    _C.normal_samples(*at, b, k, m, code(dtype), threads)
    truth, truth_ratio = reference.normal_samples(loc, log_variance, noise)
    return (z, ratio), [truth.transpose(0, 1), truth_ratio.t()]


def importance_statistics(dtype: torch.dtype, threads: int) -> tuple[Outputs, list[Tensor | None]]:
    b, k = 211, 130
    ll = random(b, k, dtype=dtype, scale=3.0)
    ratio = random(b, k, dtype=torch.float64, scale=2.0)
    state = torch.empty(b, _C.importance_state, dtype=torch.float64)
    found = torch.empty(_C.importance_state, b, dtype=torch.float64)
    at = [tensor.data_ptr() for tensor in (ll, ratio, state, found)]
    _C.importance_statistics(*at, b, k, 0, code(dtype), threads)
    truth = reference.importance_statistics(ll.t(), ratio.t(), torch.zeros(k, b))
    return (found, state), [torch.stack(list(truth.values())), None]


OPS: list[tuple[str, str, Callable[..., Any], tuple[Any, ...]]] = [
    ("l1_ball", "l1_ball", l1_ball, ()),
    *(
        (f"group_sort {g} {inner}", "group_sort", group_sort, (g, inner))
        for g in COMPARATORS
        for inner in (1, 16, 35)
    ),
    *((f"importance {family}", "importance", importance, (family,)) for family in FAMILIES),
    ("linear", "linear", linear, ()),
    ("conv_transpose", "linear", conv_transpose, ()),
    *(
        (f"lipschitz_linear {g}", "lipschitz_linear", lipschitz_linear, (g,))
        for g in (0, *COMPARATORS)
    ),
    *(
        (f"importance_linear {family}", "importance_linear", importance_linear, (family,))
        for family in FAMILIES
    ),
    ("normal_samples", "normal_samples", normal_samples, ()),
    ("importance_statistics", "importance_statistics", importance_statistics, ()),
    ("vmf", "vmf", vmf, ()),
]
EVERY_OP = pytest.mark.parametrize(
    ("op", "run", "arguments"), [row[1:] for row in OPS], ids=[row[0] for row in OPS]
)


@pytest.fixture
def _isa_restored() -> Iterator[None]:
    isa = _C.isa()
    yield
    _C.set_isa(isa)


@pytest.mark.usefixtures("_isa_restored")
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("isa", _C.available_isas())
@EVERY_OP
def test_every_instruction_set_and_number_of_threads(
    op: str, run: Callable[..., Any], arguments: tuple[Any, ...], isa: str, dtype: torch.dtype
) -> None:
    _C.set_isa(isa)
    assert _C.isa() == isa
    outputs, truths = run(dtype, 1, *arguments)
    for got, truth in zip(outputs, truths, strict=True):
        if truth is not None:
            assert_as_accurate(op, got, truth)
    for threads in (2, 3, 7):
        again, _ = run(dtype, threads, *arguments)
        for one, many in zip(outputs, again, strict=True):
            assert torch.equal(one, many), f"{threads} threads change the result"


@pytest.mark.usefixtures("_isa_restored")
def test_instruction_sets_send_the_same_random_numbers() -> None:
    found = []
    for isa in _C.available_isas():
        _C.set_isa(isa)
        found.append(vmf(torch.float64, 1)[0])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("_isa_restored")
def test_an_unknown_instruction_set_is_refused() -> None:
    isa = _C.isa()
    with pytest.raises(
        ValueError, match=r"name must be one of baseline.*got mmx|name must be one of neon"
    ):
        _C.set_isa("mmx")
    assert _C.isa() == isa


# Arguments that are accepted, to be spoilt one at a time: addresses, and the rest.
BUFFER = torch.ones(8192, dtype=torch.float64)
BALL = {"rows": 2, "cols": 4}
GROUPS = {"outer": 2, "n": 4, "inner": 3, "group_size": 2, "dtype": 1}
DENSITY = {"K": 2, "B": 3, "D": 4, "family": 0, "dtype": 1}
PANELS = {"D": 4, "H": 3, "width": _C.panel_width(1), "dtype": 1}
DRAWS = {"samples": 2, "rows": 3, "dim": 4}
ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "l1_ball_threshold": ("weight warm threshold", {**BALL, "radius": 1.0, "dtype": 1}),
    "l1_ball_forward": ("weight warm out threshold", {**BALL, "radius": 1.0, "dtype": 1}),
    "l1_ball_backward": ("grad weight threshold grad_weight", {**BALL, "dtype": 1}),
    "group_sort_forward": ("x y code", GROUPS),
    "group_sort_backward": ("grad_y code grad_x", GROUPS),
    "importance_forward": ("parameters target out", DENSITY),
    "importance_backward": ("grad_out parameters target grad_parameters", DENSITY),
    "linear_pack": ("weight bias panels", {"planes": 2, "plane_stride": 4, **PANELS}),
    "linear_forward": (
        "x panels out",
        {"rows": 2, "together": 1, "relu": False, "group_size": 2, **PANELS},
    ),
    "conv_transpose_forward": (
        "x panels bias out",
        {
            "batch": 2,
            "input": (2, 2, 3),
            "to": (3, 3, 2),
            "kernel": (2, 2),
            "stride": (1, 1),
            "padding": (0, 0),
            "relu": True,
            "width": _C.panel_width(1),
            "dtype": 1,
        },
    ),
    "lipschitz_linear_forward": (
        "x weight bias warm y threshold panels code",
        {"rows": 2, "radius": 1.0, "recording": False, "group_size": 2, **PANELS},
    ),
    "lipschitz_linear_backward": (
        "grad code x weight threshold grad_x grad_weight grad_bias",
        {"record": None, "rows": 2, "D": 4, "H": 4, "group_size": 2, "dtype": 1},
    ),
    "importance_linear_forward": (
        "hidden panels target total",
        {"K": 2, "B": 3, "family": 0, "images_first": False, **PANELS},
    ),
    "normal_samples": (
        "loc log_variance noise z log_ratio",
        {"B": 2, "K": 3, "m": 4, "dtype": 1},
    ),
    "importance_statistics": (
        "log_likelihood log_ratio state statistics",
        {"B": 2, "K": 3, "before": 0, "dtype": 1},
    ),
    "vmf_sample": (
        "loc concentration out t",
        {**DRAWS, "seed": 0, "start": 0, "shared": False, "dtype": 1},
    ),
    "vmf_angle": ("t concentration complement node weight out", {**DRAWS, "nodes": 5}),
}
NULLABLE = {
    ("l1_ball_threshold", "warm"),
    ("l1_ball_forward", "warm"),
    ("group_sort_forward", "code"),
    ("linear_pack", "bias"),
    ("conv_transpose_forward", "bias"),
    ("linear_forward", "group_size"),
    *(
        ("lipschitz_linear_forward", name)
        for name in ("bias", "warm", "panels", "code", "group_size")
    ),
    *(
        ("lipschitz_linear_backward", name)
        for name in ("grad_x", "grad_weight", "grad_bias", "group_size")
    ),
}
COUNTS = ("rows", "cols", "outer", "n", "inner", "K", "B", "D", "H", "planes", "samples", "m")
REFUSED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(COUNTS, (-1, 2**62)),
    "n": (-1, 3, 2**62),
    "dim": (-1, 1),
    "nodes": (-1, 0),
    "before": (-1,),
    "threads": (0, -3),
    "dtype": (-1, 2),
    "family": (-1, 5),
    "group_size": (0, 3, 16),
    "plane_stride": (-1, 3),
    "batch": (-1, 2**62),
    "input": ((-1, 2, 3), (2, 2**62, 3)),
    "to": ((3, -1, 2), (3, 2**62, 2)),
    "kernel": ((2, -1), (2**62, 2)),
    "stride": ((0, 1), (1, -2)),
    "padding": ((-1, 0), (0, -1)),
    "width": (0, _C.panel_width(1) + 1),
    "radius": (0.0, -1.0, float("nan")),
}


def accepted(function: str) -> dict[str, Any]:
    addresses, rest = ACCEPTED[function]
    places = {name: BUFFER[512 * i :].data_ptr() for i, name in enumerate(addresses.split())}
    return {**places, **rest, "threads": 1}


def spoilt() -> Iterator[tuple[str, str, Any]]:
    for function, (addresses, rest) in ACCEPTED.items():
        for name in addresses.split():
            if (function, name) not in NULLABLE:
                yield function, name, 0
        for name in (*rest, "threads"):
            for value in REFUSED.get(name, ()):
                if value != 0 or (function, name) not in NULLABLE:
                    yield function, name, value


@pytest.mark.parametrize("function", ACCEPTED)
def test_good_arguments_are_accepted(function: str) -> None:
    getattr(_C, function)(**accepted(function))
    for nullable in (name for op, name in NULLABLE if op == function):
        getattr(_C, function)(**{**accepted(function), nullable: 0})


@pytest.mark.parametrize(("function", "name", "value"), list(spoilt()))
def test_bad_arguments_are_refused_by_name(function: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        getattr(_C, function)(**{**accepted(function), name: value})


def test_the_statistics_have_one_size() -> None:
    """Buffers are made by one of the numbers and written by the other."""
    assert _C.importance_state == STATE == len(STATISTICS)


def test_a_record_of_another_pass_is_refused() -> None:
    given = {**accepted("lipschitz_linear_forward"), "panels": 0, "code": 0, "recording": True}
    record = _C.lipschitz_linear_forward(**given)
    assert isinstance(record, _C.Record)
    sizes = {name: given[name] for name in ("rows", "D", "H", "group_size", "dtype")}
    given = {**accepted("lipschitz_linear_backward"), **sizes, "record": record}
    _C.lipschitz_linear_backward(**{**given, "threshold": 0, "code": 0})
    for name, other in (("rows", 1), ("D", 8), ("H", 7), ("group_size", 0), ("dtype", 0)):
        with pytest.raises(ValueError, match="record must be of a pass of these sizes"):
            _C.lipschitz_linear_backward(**{**given, name: other})


def test_addresses_of_nothing_may_be_null() -> None:
    _C.l1_ball_forward(0, 0, 4, 1.0, 0, 0, 0, 0, 1)
    _C.group_sort_forward(0, 0, 0, 0, 4, 1, 2, 0, 1)
    _C.importance_forward(0, 0, 0, 0, 3, 4, 0, 0, 1)
    _C.normal_samples(0, 0, 0, 0, 0, 0, 3, 0, 0, 1)
    _C.importance_statistics(0, 0, 0, 0, 0, 4, 0, 0, 1)
    _C.vmf_sample(0, 0, 0, 0, 0, 3, 4, 0, 0, False, 0, 1)


def test_the_stub_lists_what_the_module_has() -> None:
    spec = importlib.util.find_spec("lipvae")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "_C.pyi").read_text(encoding="utf-8"))
    functions = {
        node.name: [argument.arg for argument in node.args.args]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    attributes = {ast.unparse(node.target) for node in tree.body if isinstance(node, ast.AnnAssign)}
    attributes |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    public = {name for name in dir(_C) if not name.startswith("__")} | {"__version__"}
    assert public == functions.keys() | attributes
    for name, arguments in functions.items():
        signature = getattr(_C, name).__doc__.splitlines()[0]
        assert re.findall(r"[(,] ?(\w+): ", signature) == arguments, name
