"""What the CPU path must show, and what a GPU is to show, each bar beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench import bench_importance, bench_importance_linear, bench_lipschitz_linear, bench_scoring
from bench.results import MeasuredCase, Row, cases
from bench.settings import COPY, KERNEL, PUBLIC, WARM

Values = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Bar:
    """A bound that every measured case has to keep.

    Attributes:
        op: the op it is about.
        text: what is compared.
        bound: the number; None where the value is only reported.
        at_most: whether the value must stay below the bound, or above.
        value: (label, value) of each case that the bar is about.
    """

    op: str
    text: str
    bound: float | None
    at_most: bool
    value: Callable[[list[MeasuredCase]], Values]


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured: the best and the worst case."""

    bar: Bar
    best: float | None
    worst: float | None
    where: str
    cases: int

    @property
    def met(self) -> bool | None:
        """Whether the worst case keeps the bound; None if nothing was measured or bounded."""
        if self.worst is None or self.bar.bound is None:
            return None
        return self.worst <= self.bar.bound if self.bar.at_most else self.worst >= self.bar.bound


def times(
    op: str,
    numerator: str,
    denominator: str,
    *,
    keep: Callable[[Row], bool] = lambda row: True,
) -> Callable[[list[MeasuredCase]], Values]:
    """Ratios of two providers' times over the cases of an op that `keep` takes."""

    def values(measured: list[MeasuredCase]) -> Values:
        for case in measured:
            if case.first["op"] == op and keep(case.first):
                ratio = case.ratio(numerator, denominator)
                if ratio is not None:
                    yield case.label, ratio

    return values


def extra(op: str, provider: str, name: str) -> Callable[[list[MeasuredCase]], Values]:
    """A further fact of a provider's rows."""

    def values(measured: list[MeasuredCase]) -> Values:
        for case in measured:
            row = case.rows.get(provider)
            if row is not None and case.first["op"] == op and name in row["extra"]:
                yield case.label, row["extra"][name]

    return values


def memory(
    op: str, numerator: str, denominator: str, keep: Callable[[Row], bool]
) -> Callable[[list[MeasuredCase]], Values]:
    """Ratios of the extra memory of two providers."""

    def values(measured: list[MeasuredCase]) -> Values:
        for case in measured:
            if case.first["op"] == op and keep(case.first) and numerator in case.rows:
                top = case.rows[numerator]["peak_extra_bytes"]
                bottom = case.rows[denominator]["peak_extra_bytes"]
                if top is not None and bottom is not None:
                    yield case.label, top / max(bottom, 1)

    return values


def memory_growth(measured: list[MeasuredCase]) -> Values:
    """Growth of scoring's extra memory from K = 128 to the largest K over the eager pipeline's.

    The ratio of its own two would be of some MB each, which hang on the heap's holes.
    """
    by_sizes: dict[tuple[object, ...], dict[int, tuple[int, int]]] = {}
    for case in measured:
        if case.first["op"] != "scoring" or case.first["shape"]["K"] < 128:
            continue
        rows = [case.rows.get(provider) for provider in (PUBLIC, EAGER)]
        ours, eager = (row["peak_extra_bytes"] if row is not None else None for row in rows)
        if ours is not None and eager is not None:
            sizes = dict(case.first["shape"])
            k = sizes.pop("K")
            by_sizes.setdefault((case.first["threads"], *sizes.items()), {})[k] = ours, eager
    for found in by_sizes.values():
        if len(found) > 1:
            low, high = min(found), max(found)
            ours, eager = (b - a for a, b in zip(found[low], found[high], strict=True))
            yield f"K {low} to {high}", max(ours, 0) / max(eager, 1)


def _variant(prefix: str) -> Callable[[Row], bool]:
    return lambda row: row["variant"].startswith(prefix)


def _rows_of_layers(row: Row) -> bool:
    return row["variant"].startswith("forward") and "tiny" not in row["variant"]


def _layer(direction: str, batch: int) -> Callable[[Row], bool]:
    return lambda row: row["variant"] == direction and row["shape"]["batch"] == batch


def _groups(*sizes: int) -> Callable[[Row], bool]:
    return lambda row: row["shape"]["group_size"] in sizes


def _exceeds_cache(row: Row) -> bool:
    return row["variant"] == "forward, bernoulli" and row["work"]["bytes"] > row["cache_bytes"]


def _in_cache(row: Row) -> bool:
    return row["variant"] == "forward, bernoulli" and not _exceeds_cache(row)


def _widest(row: Row) -> bool:
    shape = row["shape"]
    return row["variant"].startswith("forward, bernoulli") and (
        shape["K"], shape["B"], shape["D"],
    ) == (128, 128, 3072)  # fmt: skip


FLOOR, GEMM = bench_lipschitz_linear.FLOOR, bench_importance_linear.GEMM
READ, EAGER = bench_importance.READ, bench_scoring.EAGER
LNETS, COMPILED = "sort (LNets)", "Newton, compiled"

BARS = [
    Bar("l1_ball", "time / copy, cold start", 6, True,
        times("l1_ball", KERNEL, "copy", keep=_rows_of_layers)),
    Bar("l1_ball", "time / copy, warm start", 4.5, True,
        times("l1_ball", WARM, "copy", keep=_rows_of_layers)),
    Bar("l1_ball", "LNets / kernel, cold start", 100, False,
        times("l1_ball", LNETS, KERNEL, keep=_rows_of_layers)),
    Bar("l1_ball", "LNets / kernel, warm start as layers run it", 100, False,
        times("l1_ball", LNETS, WARM, keep=_rows_of_layers)),
    Bar("l1_ball", "compiled Newton / kernel, cold start", 2.5, False,
        times("l1_ball", COMPILED, KERNEL, keep=_rows_of_layers)),
    Bar("l1_ball", "float32 error / radius", 2.0**-21, True,
        extra("l1_ball", KERNEL, "relative_error")),
    *(
        Bar("lipschitz_linear", f"time / nn.Linear and ReLU, {direction}, batch {batch}{state}",
            1.15 if batch == 128 else None, True,
            times("lipschitz_linear", PUBLIC, FLOOR, keep=_layer(direction + state, batch)))
        for state in (bench_lipschitz_linear.INITIAL, bench_lipschitz_linear.TRAINED)
        for direction in ("forward", "forward and backward")
        for batch in bench_lipschitz_linear.BATCHES
    ),
    Bar("group_sort", "time / copy, g = 2", 1.2, True,
        times("group_sort", KERNEL, "copy", keep=_groups(2))),
    Bar("group_sort", "time / copy, g = 4, 8", 2.6, True,
        times("group_sort", KERNEL, "copy", keep=_groups(4, 8))),
    Bar("group_sort", "bytes kept for the backward pass, an entry", 0.5, True,
        extra("group_sort", PUBLIC, "saved_bytes_per_entry")),
    Bar("importance", "time / one read, Bernoulli beyond the cache", 1.5, True,
        times("importance", KERNEL, READ, keep=_exceeds_cache)),
    Bar("importance", "eager / time, Bernoulli beyond the cache", 15, False,
        times("importance", "eager", PUBLIC, keep=_exceeds_cache)),
    Bar("importance", "compiled / time, Bernoulli beyond the cache", 5, False,
        times("importance", "compiled", PUBLIC, keep=_exceeds_cache)),
    Bar("importance", "eager / time, Bernoulli in the cache", None, False,
        times("importance", "eager", PUBLIC, keep=_in_cache)),
    Bar("importance", "compiled / time, Bernoulli in the cache", None, False,
        times("importance", "compiled", PUBLIC, keep=_in_cache)),
    Bar("importance", "time / one read, Bernoulli in the cache", None, True,
        times("importance", KERNEL, READ, keep=_in_cache)),
    *(
        Bar("importance", f"time / one read, {family}", None, True,
            times("importance", KERNEL, READ, keep=_variant(f"forward, {family}")))
        for family in bench_importance.FAMILY_SHAPES
    ),
    Bar("importance_linear", "time / bare GEMM, Bernoulli", 1.1, True,
        times("importance_linear", PUBLIC, GEMM, keep=_variant("forward, bernoulli"))),
    Bar("importance_linear", "extra memory, eager / ours, K = B = 128, D = 3072", 40, False,
        memory("importance_linear", "eager", PUBLIC, _widest)),
    Bar("training", "step / step of the plain VAE, fc", 1.2, True,
        times("training", PUBLIC, "VAE", keep=_variant("fc"))),
    Bar("scoring", "eager pipeline / Scorer, K = 128", 1.5, False,
        times("scoring", EAGER, PUBLIC, keep=lambda row: row["variant"] == bench_scoring.WHOLE)),
    Bar("scoring", "eager pipeline / Scorer, convolutional", 1.5, False,
        times("scoring", EAGER, PUBLIC, keep=_variant(bench_scoring.CONVOLUTIONAL))),
    Bar("scoring", "eager pipeline / Scorer, smaller and larger sizes", None, False,
        times("scoring", EAGER, PUBLIC, keep=_variant("fc, growth"))),
    Bar("scoring", "Scorer / the decoder's GEMMs, K = 128", None, True,
        times("scoring", PUBLIC, bench_scoring.GEMM,
              keep=lambda row: row["variant"] == bench_scoring.WHOLE)),
    Bar("scoring", "Scorer / the decoder's GEMMs, convolutional", None, True,
        times("scoring", PUBLIC, bench_scoring.GEMM, keep=_variant(bench_scoring.CONVOLUTIONAL))),
    Bar("scoring", "bfloat16 decoder / float32 decoder, time", None, True,
        times("scoring", bench_scoring.LOW, PUBLIC)),
    Bar("scoring", "growth of memory with K / of the eager pipeline's", 0.05, True, memory_growth),
]  # fmt: skip


def _products(row: Row) -> bool:
    return row["variant"].startswith(bench_lipschitz_linear.PRODUCTS) and row["shape"]["in"] == 4096


def _beyond_a_gpus_cache(row: Row) -> bool:
    sizes = tuple(row["shape"].values())
    return row["variant"] == "forward, bernoulli" and sizes == bench_importance.CUDA_SHAPE


AIMS = [
    Bar("lipschitz_linear", "time / bare GEMM, 4096 x 4096, batch 4096", 1.15, True,
        times("lipschitz_linear", PUBLIC, GEMM, keep=_products)),
    Bar("lipschitz_linear", "LNets and deel-torchlip / time, likewise", 3, False,
        times("lipschitz_linear", bench_lipschitz_linear.SORTED, PUBLIC, keep=_products)),
    # A copy moves each byte twice: 85 % of its bandwidth.
    Bar("importance", "time / copy of the logits, Bernoulli beyond the cache", 1 / 1.7, True,
        times("importance", PUBLIC, COPY, keep=_beyond_a_gpus_cache)),
    Bar("importance_linear", "time / bare GEMM, Bernoulli, K = B = 128, D = 3072", 1.15, True,
        times("importance_linear", PUBLIC, GEMM, keep=_widest)),
]  # fmt: skip


def judge(rows: Iterable[Row], device: str = "cpu") -> list[Verdict]:
    """The bars of a CPU, or the aims of a GPU ("cuda"), against rows measured there."""
    measured = cases(row for row in rows if row["device"] == device)
    verdicts = []
    for bar in BARS if device == "cpu" else AIMS:
        values = sorted(bar.value(measured), key=lambda pair: pair[1], reverse=not bar.at_most)
        if not values:
            verdicts.append(Verdict(bar, None, None, "", 0))
            continue
        (_, best), (where, worst) = values[0], values[-1]
        verdicts.append(Verdict(bar, best, worst, where, len(values)))
    return verdicts


def table(verdicts: Iterable[Verdict]) -> str:
    """Markdown."""
    lines = [
        "| op | what | bar | best | worst | worst at | cases | met |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for v in verdicts:
        sign = "≤" if v.bar.at_most else "≥"
        bound = "reported" if v.bar.bound is None else f"{sign} {v.bar.bound:.3g}"
        met = {True: "yes", False: "**no**", None: ""}[v.met]
        if v.worst is None:
            met = "not measured"
        best, worst = ("" if x is None else f"{x:.3g}" for x in (v.best, v.worst))
        lines.append(
            f"| {v.bar.op} | {v.bar.text} | {bound} | {best} | {worst} | {v.where} | {v.cases} "
            f"| {met} |"
        )
    return "\n".join(lines)
