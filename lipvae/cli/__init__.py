"""The command line: ``lipvae demo | fit | score | evaluate | reproduce | data | doctor``."""

from __future__ import annotations

import io
import sys

import typer

from lipvae.cli import data, demo, doctor, evaluate, fit, reproduce, score
from lipvae.cli._common import print_version

app = typer.Typer(
    name="lipvae",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Find out-of-distribution images with variational autoencoders of compact latent space.

    Start with `lipvae demo`, which trains on images that come with scikit-learn. Then
    `lipvae fit` a model to your data, `lipvae score` new images, and
    `lipvae evaluate` how well outliers stand out. `lipvae reproduce` rebuilds the paper's results.
    """


for command in (
    demo.demo,
    fit.fit,
    score.score,
    evaluate.evaluate,
    reproduce.reproduce,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(data.app, name="data")


def main() -> None:
    """Runs the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal's encoding lacks, in the name of a file, is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
