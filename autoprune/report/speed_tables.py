"""Measured speed-ups as tables, beside the FLOPs that were cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from autoprune.report import speed
from autoprune.report.tables import milliseconds, percent

if TYPE_CHECKING:
    from rich.console import Console

SPEED_COLUMNS = (
    "model", "FLOPs cut", "speed-up", "median", "IQR", "base median", "calls", "memory", "energy", "size",
    "int8 accuracy",
)  # fmt: skip


def print_speed(console: Console, rows: Sequence[speed.Row]) -> None:
    """Print measured speed-ups beside the FLOPs cut, one table per setting, since settings do not compare."""
    for own in speed.by_setting(rows):
        first = own[0].measured
        title = f"Measured: {speed.heading(first)}"
        table = Table(box=box.SIMPLE, title=title, title_justify="left", caption=speed.provenance(first))
        table.caption_justify = "left"
        for column in SPEED_COLUMNS:
            table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
        for row in own:
            table.add_row(*speed_cells(row))
        console.print(table)
    if rows:
        console.print(f"{speed.LEGEND}\n{speed.COUNTED}")


def speed_cells(row: speed.Row) -> list[str]:
    """Return a measurement as the cells of `SPEED_COLUMNS`."""
    found, own = row.measured, row.measured.resources
    size = found.file_bytes if found.file_bytes is not None else own.weight_bytes
    return [
        "model" if row.trial is None else f"trial {row.trial}",
        speed.flops_cut(found),
        speed.told(found),
        milliseconds(found.own.median_ms),
        milliseconds(found.own.iqr_ms),
        milliseconds(found.base.median_ms),
        str(found.own.calls),
        f"{own.peak_activation_bytes / 1024:.0f} KiB",
        f"{own.energy_proxy_uj:.3g} uJ",
        f"{size / 1024:.0f} KiB",
        "-" if found.accuracy is None else percent(found.accuracy),
    ]
