"""`autoprune methods`: every method and preset, from their own declarations."""

from __future__ import annotations

from typing import Annotated

import typer

from autoprune.cli import common


def methods(
    room: Annotated[
        str | None,
        typer.Argument(help="criteria, allocation, schedules, regularisers, lowrank, sparsity, recovery or presets"),
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """List every method and preset with its paper and hyperparameters."""
    from autoprune.report import catalogue, tables

    found = catalogue.entries(room)
    if as_json:
        common.print_json([entry.plain() for entry in found])
        return
    tables.print_catalogue(common.console(), found)
