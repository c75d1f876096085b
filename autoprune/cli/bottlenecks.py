"""The command `bottlenecks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoprune.cli import common


def bottlenecks(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="YAML file, or the name of a shipped study.")],
    criterion: Annotated[str, typer.Option(help="What scores the units.")] = "sosp_h",
    removed_fraction: Annotated[float, typer.Option(help="Share of all units that the ranking removes.")] = 0.5,
    threshold: Annotated[
        float, typer.Option(help="A bottleneck loses less than this part of what groups lose on average.")
    ] = 0.5,
    widen: Annotated[float, typer.Option(min=1, help="How many times their units the bottlenecks get.")] = 2.0,
    uniform: Annotated[float, typer.Option(min=1, help="The same for all groups, in the control.")] = 1.1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for two studies: bottlenecks widened, and all groups widened.")
    ] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Find the layers that a criterion hardly takes from, and write studies of the model with those widened."""
    from autoprune.report.bottlenecks import find, widened_studies
    from autoprune.report.tables import percent, print_mapping

    if out is not None:
        common.check_new(out)
    say = lambda text: typer.echo(text, err=True)  # noqa: E731
    found = find(study, criterion, removed_fraction, threshold, common.overrides_of(settings, {}), say)
    files = {}
    if out is not None:
        files = widened_studies(found, out, factor=widen, uniform=uniform)
    if as_json:
        groups = [{**vars(share), "removed_fraction": share.removed_fraction} for share in found.shares]
        common.print_json({"criterion": criterion, "groups": groups, "studies": {k: str(v) for k, v in files.items()}})
        return
    rows = [
        [s.group, str(s.size), str(s.removed), percent(s.removed_fraction), "bottleneck" if s.bottleneck else ""]
        for s in found.shares
    ]
    title = f"{criterion}: {percent(removed_fraction)} of all units removed"
    print_mapping(common.console(), title, rows, ("group", "units", "removed", "share", ""))
    for kind, path in files.items():
        typer.echo(f"{kind}: {path}")
