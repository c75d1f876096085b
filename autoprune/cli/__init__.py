"""The command line. Every command is a thin layer over the Python API; nothing heavy is imported before one runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import autoprune
from autoprune.cli.bottlenecks import bottlenecks
from autoprune.cli.common import reporting, show_tracebacks
from autoprune.cli.measure import measure
from autoprune.cli.methods import methods
from autoprune.cli.models import compress, evaluate, export
from autoprune.cli.query import query
from autoprune.cli.results import front, pick, polish, report, scratch
from autoprune.cli.studies import check, launch, show, status

app = typer.Typer(
    name="autoprune",
    help="Search for the best ways to prune and factorise a trained PyTorch model.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autoprune {autoprune.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    show_tracebacks(debug)


for _command in (
    launch,
    check,
    status,
    front,
    pick,
    polish,
    query,
    evaluate,
    export,
    measure,
    report,
    scratch,
    compress,
    bottlenecks,
    methods,
    show,
):
    app.command()(reporting(_command))


def main() -> None:
    """Run the command line; the exit status is 0 done, 1 failed, 2 bad input."""
    sys.exit(app())
