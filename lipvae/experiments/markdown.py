"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ABSENT = "–"  # noqa: RUF001  (a dash, not a minus)
_TITLES = {"auroc": "AUROC", "auprc": "AUPRC", "fpr80": "FPR80"}


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash.

    Example:
        >>> number(99.694), number(None)
        ('99.69', '–')
    """
    return ABSENT if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference with its sign, or a dash."""
    return ABSENT if value is None else f"{value:+.2f}"


def spread(value: dict[str, Any] | None) -> str:
    """Mean and spread over seeds."""
    if value is None:
        return ABSENT
    text = number(value["mean"])
    return text if value["spread"] is None else f"{text} ± {value['spread']:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; every column but the first is aligned to the right.

    Example:
        >>> print(table(["a", "b"], [["x", "1"]]))
        | a | b |
        | --- | ---: |
        | x | 1 |
    """
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `lipvae.experiments.rows.evaluate`: ours, the paper's, and the difference."""
    header = ["row", "positive"]
    for title in _TITLES.values():
        header += [title, "paper", "difference"]
    header.append("AUPRC, other positive")
    lines = []
    for row in rows:
        metrics, known = row["metrics"] or {}, row["paper"] or {}
        difference = row["difference"] or {}
        cells = [row["title"], row["positive"]]
        for name in _TITLES:
            cells += [spread(metrics.get(name)), number(known.get(name))]
            cells.append(signed(difference.get(name)))
        cells.append(spread(metrics.get("auprc_other")))
        lines.append(cells)
    return table(header, lines)


def preamble(title: str, result: dict[str, Any], *, draws: bool = True) -> str:
    """Title, command, machine and budget; `draws`: also that of a Bayesian model's ensemble."""
    machine = result["environment"]
    budget = result["budget"]
    seeds = ", ".join(map(str, result["seeds"]))
    images = budget["images"] or "all"
    ensemble = f"; ensembles of {budget['num_draws']} draws with K = {budget['draw_samples']}"
    return (
        f"# {title}\n\n"
        f"`{result['command']}`, {machine['device']}, {machine['threads']} thread(s) "
        f"({machine['machine']}), lipvae {machine['lipvae']}, torch {machine['torch']}.\n"
        f"Seeds {seeds}; {budget['grey_epochs']} epochs for grey images, "
        f"{budget['colour_epochs']} for colour; {images} test images of each set, "
        f"K = {budget['num_samples']}{ensemble if draws else ''}.\n"
        'Percent; mean ± sample standard deviation over seeds. A dash under "paper" is a figure '
        "that is not known here.\n" + "".join(f"{line}\n" for line in result.get("remarks", ()))
    )
