"""Rows of measurements: files, cases, ratios."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# What every row carries. tests/test_bench.py holds runs to it.
FIELDS = {
    "op", "variant", "shape", "dtype", "data", "provider", "role", "median_s", "q10_s", "q90_s",
    "rounds", "calls", "limit", "to_limit", "rival", "to_ours", "peak_extra_bytes", "extra", "work",
    "device", "device_name", "cores", "cache_bytes", "threads", "isa", "versions", "date",
}  # fmt: skip


def save(path: Path, rows: Sequence[Row], skipped: Sequence[dict[str, str]]) -> None:
    """Writes one run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows, "skipped": skipped}, indent=1) + "\n")


def load(paths: Iterable[Path]) -> list[Row]:
    """Rows of several runs; where two measured the same, the later one.

    Raises:
        ValueError: for a file of another form.
    """
    latest: dict[tuple[Any, ...], Row] = {}
    for path in paths:
        content = json.loads(Path(path).read_text())
        rows = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(rows, list) or any(FIELDS - row.keys() for row in rows):
            raise ValueError(f"{path} does not hold rows of `python -m bench --json`")
        for row in rows:
            key = (*case_key(row), row["provider"])
            if key not in latest or latest[key]["date"] <= row["date"]:
                latest[key] = row
    return list(latest.values())


def case_key(row: Row) -> tuple[Any, ...]:
    """What the rows of one case share."""
    shape = tuple(row["shape"].items())
    run = (row["device"], row["device_name"], row["threads"])
    return (*run, row["op"], row["variant"], shape, row["dtype"], row["data"])


@dataclass
class MeasuredCase:
    """The rows of one case, by provider."""

    rows: dict[str, Row]

    @property
    def first(self) -> Row:
        """Any row, for what all share."""
        return next(iter(self.rows.values()))

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """How many times longer one provider takes than another."""
        if numerator not in self.rows or denominator not in self.rows:
            return None
        top, bottom = self.rows[numerator], self.rows[denominator]
        if top["rival"] == denominator and top["to_ours"]:
            return float(top["to_ours"])
        if top["limit"] == denominator and top["to_limit"]:
            return float(top["to_limit"])
        return float(top["median_s"] / bottom["median_s"])

    @property
    def label(self) -> str:
        """Sizes, and what else tells the case from its like."""
        row = self.first
        sizes = ", ".join(f"{k} {v}" for k, v in row["shape"].items() if k != "group_size")
        threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
        return f"{row['variant']} ({sizes}{', streamed' * (row['data'] == 'streamed')}{threads})"


def cases(rows: Iterable[Row]) -> list[MeasuredCase]:
    """Rows by case, in their order."""
    found: dict[tuple[Any, ...], MeasuredCase] = {}
    for row in rows:
        found.setdefault(case_key(row), MeasuredCase({})).rows[row["provider"]] = row
    return list(found.values())


def seconds(value: float) -> str:
    """A time with three figures."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def megabytes(value: int | None) -> str:
    """A size in MB, or nothing."""
    return "" if value is None else f"{value / 1e6:.1f} MB"


def factor(value: float | None) -> str:
    """A ratio, or nothing."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
