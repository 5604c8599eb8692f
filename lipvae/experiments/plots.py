"""What the figures share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def have_matplotlib() -> bool:
    """Whether figures can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


@contextlib.contextmanager
def subplots(path: Path, rows: int, columns: int, width: float = 4.5) -> Iterator[list[list[Any]]]:
    """A grid of axes that is written to a PNG when the block ends.

    Args:
        path: of the PNG.
        rows: of the grid.
        columns: of the grid.
        width: of one axes, in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    yield axes.tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
