"""``lipvae data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lipvae import data
from lipvae.cli import _common as common
from lipvae.cli import _options as options

app = typer.Typer(
    no_args_is_help=True,
    help="List the data sets and fetch them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Root = Annotated[
    Path | None,
    typer.Option(help="A folder that has the official files, or some. Default: $LIPVAE_DATA."),
]


@app.command("list")
@common.user_errors
def list_sets(root: Root = None) -> None:
    """List the data sets, and where each would come from.

    **Example**

    - `lipvae data list`
    """
    table = Table(title=f"Data sets (cache: {data.cache_root()})", title_justify="left")
    for column in ("name", "shape", "images", "where", "licence", "content"):
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "shape"))
    for row in data.describe(root):
        table.add_row(row.name, row.shape, row.splits, row.available, row.licence, row.note)
    common.console().print(table)


@app.command("fetch")
@common.user_errors
def fetch(
    names: Annotated[list[str], typer.Argument(help="Names from `lipvae data list`.")],
    root: Root = None,
    sources: Annotated[
        str | None,
        typer.Option(
            help=f"Sources to try, in order: {', '.join(data.SOURCE_NAMES)}. All by default, or "
            "$LIPVAE_DATA_SOURCES."
        ),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Make data sets available on this machine, and check every file.

    **Examples**

    - `lipvae data fetch fashion-mnist mnist`
    - `lipvae data fetch cifar10 --sources folder --root /mnt/datasets`
    """
    for name in names:
        files = data.fetch(name, root, sources, progress=not quiet)
        for path in files.values():
            common.say(str(path))
