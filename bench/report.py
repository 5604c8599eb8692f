"""Draws the plots of docs/performance.md and writes its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from bench import bars, bench_scores, bench_scoring, results
from bench.results import MeasuredCase, Row, factor, megabytes, seconds
from bench.settings import PUBLIC
from lipvae.scores.regret import RegretSettings

PAGE = "performance.md"
CASES = "tables/performance-cases.md"
# The parts of the page that commands write.
MEASURED, ROOFLINE, WEIGHTS, UNITS = "measured", "roofline", "weights", "units"
SCORES_NOTE = f"""A scorer that gives this score alone, on one thread; scores of the same samples
share one pass. Each of the S models of an ensemble draws K samples. Likelihood regret takes
{RegretSettings().steps} gradient steps."""


@dataclass(frozen=True)
class Plot:
    """Times of one op against one size.

    Attributes:
        op: the op.
        name: of the file, after "performance-".
        axis: label of the size.
        size: of a row; None leaves the row out.
    """

    op: str
    name: str
    axis: str
    size: Callable[[Row], float | None]


def _product(variant: str, *names: str) -> Callable[[Row], float | None]:
    def size(row: Row) -> float | None:
        if row["variant"] != variant or row["data"] != "resident":
            return None
        total = 1.0
        for name in names:
            total *= row["shape"][name]
        return total

    return size


def _growth(name: str) -> Callable[[Row], float | None]:
    base = {key: bench_scoring.BASE[key] for key in ("K", "B", "m")}
    base["D"] = bench_scoring.BASE["channels"] * bench_scoring.BASE["side"] ** 2

    def size(row: Row) -> float | None:
        shape = row["shape"]
        others = all(shape[key] == base[key] for key in base if key != name)
        fc = row["variant"] != bench_scoring.CONVOLUTIONAL
        return float(shape[name]) if others and fc else None

    return size


def _layer(row: Row) -> float | None:
    shape = row["shape"]
    kept = row["variant"] == "forward and backward" and (shape["in"], shape["out"]) == (784, 512)
    return float(shape["batch"]) if kept else None


def _vmf(row: Row) -> float | None:
    m = row["shape"]["m"]
    return float(m) if row["variant"] == f"kappa={float(m):g}" else None


def _bernoulli(row: Row) -> float | None:
    return _product("forward, bernoulli", "K", "B", "D")(row)


def _pixels(row: Row) -> float | None:
    shape = row["shape"]
    kept = row["variant"] == "forward, bernoulli" and (shape["K"], shape["B"]) == (128, 128)
    return float(shape["D"]) if kept else None


PLOTS = (
    Plot("l1_ball", "l1_ball", "entries (initial rows)",
         _product("forward, initial rows", "rows", "cols")),
    Plot("group_sort", "group_sort", "entries (g = 2)",
         lambda row: _product("forward, g=2", "batch", "features")(row)
         if "features" in row["shape"] else None),
    Plot("lipschitz_linear", "lipschitz_linear", "batch (784 to 512, both directions)", _layer),
    Plot("importance", "importance", "logits (Bernoulli)", _bernoulli),
    Plot("importance_linear", "importance_linear", "pixels D (Bernoulli, K = B = 128)", _pixels),
    Plot("vmf", "vmf", "dimension m (concentration m)", _vmf),
    *(Plot("scoring", f"scoring-{name}", f"{name}", _growth(name)) for name in "KBDm"),
)  # fmt: skip


def _line(axes: Axes, name: str, points: list[tuple[float, float]], role: str) -> None:
    style = {"ours": "o-", "peer": "s--", "limit": "k:"}[role]
    xs, ys = zip(*sorted(points), strict=True)
    axes.plot(xs, ys, style, label=name, markersize=4, linewidth=2 if role == "ours" else 1)


def _short(size: float) -> str:
    """A size in few characters: 784, 18k, 17M."""
    return f"{size:g}" if size < 1e4 else EngFormatter(places=0, sep="")(size)


def draw(plot: Plot, rows: Iterable[Row], path: Path) -> bool:
    """Time, and ratio to the limit, against size; False if there is nothing to draw."""
    time_points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    ratio_points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        size = plot.size(row) if row["op"] == plot.op else None
        if size is None:
            continue
        key = (row["provider"], row["role"])
        time_points.setdefault(key, []).append((size, row["median_s"] * 1e3))
        if row["to_limit"]:
            ratio_points.setdefault(key, []).append((size, row["to_limit"]))
    if not time_points:
        return False
    sizes: list[float] = []
    for size in sorted({size for points in time_points.values() for size, _ in points}):
        if not sizes or size > 1.5 * sizes[-1]:  # labels beside one another
            sizes.append(size)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    for (name, role), points in time_points.items():
        _line(left, name, points, role)
    for (name, role), points in ratio_points.items():
        _line(right, name, points, role)
    right.axhline(1, color="black", linestyle=":", linewidth=1)
    left.set_ylabel("median time of a call, ms")
    right.set_ylabel("time / limit")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel=plot.axis)
        axes.set_xticks(sizes, [_short(size) for size in sizes])
        low, high = axes.get_ylim()
        subs = (1, 1.2, 1.5, 2, 3, 5, 7) if high < 5 * low else (1, 2, 5)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(plot.op)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _machine(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return (
        f"{row['device_name']}, {row['cores']} cores, {row['threads']} thread(s), "
        f"instruction set {row['isa']}; {versions}; {row['date'][:10]}"
    )


def case_table(measured: Sequence[MeasuredCase]) -> str:
    """Markdown: each of ours against its limit, and the peers against ours."""
    lines = [
        "| case | provider | median | 10 % | 90 % | time / limit | limit | time / ours | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in measured:
        for i, row in enumerate(case.rows.values()):
            lines.append(
                f"| {case.label if not i else ''} | {row['provider']} "
                f"| {seconds(row['median_s'])} | {seconds(row['q10_s'])} "
                f"| {seconds(row['q90_s'])} | {factor(row['to_limit'])} | {row['limit'] or ''} "
                f"| {factor(row['to_ours'])} | {megabytes(row['peak_extra_bytes'])} |"
            )
    return "\n".join(lines)


def measured_on(rows: Sequence[Row]) -> str:
    """The machines of the rows, as a list."""
    return "\n".join(f"- {line}" for line in dict.fromkeys(_machine(row) for row in rows))


def scores_table(measured: Iterable[MeasuredCase]) -> str:
    """Markdown: what each score costs by itself."""
    lines = [
        "| score | K | S | images a second, fc | time / decoder alone | images a second, conv "
        "| time / decoder alone |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found: dict[str, dict[str, Row]] = {}
    for case in measured:
        score, _, architecture = case.first["variant"].partition(", ")
        found.setdefault(score, {})[architecture] = case.rows[PUBLIC]
    for score, rows in found.items():
        shape = next(iter(rows.values()))["shape"]
        cells = [score, str(shape["K"]), str(shape.get("S", ""))]
        for architecture in ("fc", "conv"):
            row = rows.get(architecture)
            if row is None:
                cells += ["", ""]
                continue
            cells.append(f"{row['work']['images'] / row['median_s']:,.0f}")
            decodes = row["limit"] == bench_scores.DECODER
            cells.append(factor(row["to_limit"]) if decodes else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(rows: Sequence[Row], images: Sequence[Path]) -> str:
    """The measured part of the page: bars and plots."""
    parts = ["Measured on:", measured_on(rows)]
    if any(row["device"] == "cpu" for row in rows):
        parts += ["### Bars", bars.table(bars.judge(rows))]
    if any(row["device"] == "cuda" for row in rows):
        parts += ["### Aims on a GPU", bars.table(bars.judge(rows, "cuda"))]
    else:
        parts.append("GPU: not measured on a GPU.")
    parts.append(f"Every case, with quantiles and peers: [{CASES}]({CASES}).")
    one = [row for row in rows if row["device"] == "cpu" and row["threads"] == 1]
    scores = results.cases(row for row in one if row["op"] == "scores")
    if scores:
        parts += ["### Each score by itself", SCORES_NOTE, scores_table(scores)]
    titles = {f"performance-{plot.name}": f"{plot.op}, by {plot.axis}" for plot in PLOTS}
    parts.append("### Plots")
    parts += [
        f"![{titles[image.stem]}: time and ratio to the limit]({image.name})" for image in images
    ]
    return "\n\n".join(parts)


def cases_page(rows: Sequence[Row]) -> str:
    """The page of all cases."""
    parts = ["# Every case of the bench", "Printed by `python -m bench report`. Measured on:"]
    parts.append(measured_on(rows))
    for op in dict.fromkeys(row["op"] for row in rows):
        parts.append(f"## {op}")
        parts.append(case_table(results.cases(row for row in rows if row["op"] == op)))
    return "\n\n".join(parts) + "\n"


def markers(name: str) -> tuple[str, str]:
    """The lines between which a command writes."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_section(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of a name.

    Raises:
        ValueError: if a marker is missing.
    """
    begin, end = markers(name)
    if begin not in page or end not in page:
        raise ValueError(f"the page must hold the lines {begin} and {end}")
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"


def fill(out: Path, name: str, text: str) -> Path:
    """Writes one part of the page in `out`, which is begun if it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    old = page.read_text() if page.exists() else "\n".join(markers(name)) + "\n"
    page.write_text(replace_section(old, name, text))
    return page


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draws all plots into `out`, fills the bars of its performance.md and writes all cases.

    Plots come from rows of one thread on a CPU where there are any, else from all rows.

    Returns:
        The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = [row for row in rows if row["device"] == "cpu" and row["threads"] == 1] or list(rows)
    images = []
    for plot in PLOTS:
        path = out / f"performance-{plot.name}.png"
        if draw(plot, drawn, path):
            images.append(path)
    cases = out / CASES
    cases.parent.mkdir(parents=True, exist_ok=True)
    cases.write_text(cases_page(rows))
    return [*images, cases, fill(out, MEASURED, section(rows, images))]
