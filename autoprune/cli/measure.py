"""The command `measure`: what cut FLOPs are worth on a clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli import common
from autoprune.cli.models import DataOption, data_overrides
from autoprune.errors import BadInput

if TYPE_CHECKING:
    from autoprune.report.speed import Row, Wanted


def measure(
    target: Annotated[
        str,
        typer.Argument(metavar="RUN|DIR", help="Run folder or its name, or folder of an artefact.", show_default=False),
    ],
    backend: Annotated[
        list[str] | None, typer.Option(help="eager, compile or onnxruntime; repeatable. By default eager.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Samples of a call; repeatable. By default 1.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a call.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    trial: Annotated[
        list[int] | None, typer.Option(help="This trial of the run; repeatable. By default the whole front.")
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(help="Time a file quantised by this method too, instead of by the recipe's.", show_default=False),
    ] = None,
    settings: DataOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Time models against their base model, in turns, and record the speed-ups beside them."""
    from autoprune.report.speed import Wanted

    wanted = Wanted(
        backends=tuple(dict.fromkeys(backend or ("eager",))),
        batch_sizes=tuple(dict.fromkeys(batch_size or (1,))),
        threads=threads,
        device=device,
        quantise=quantise,
    )
    rows = _rows(target, trial, settings, wanted)
    if as_json:
        common.print_json([row.plain() for row in rows])
        return
    from autoprune.report.speed_tables import print_speed

    print_speed(common.console(), rows)


def _rows(target: str, trials: list[int] | None, settings: list[str] | None, wanted: Wanted) -> tuple[Row, ...]:
    from autoprune import artefact
    from autoprune.cli.results import read_front
    from autoprune.report.selection import Selector
    from autoprune.report.speed import measure_artefact, measure_run
    from autoprune.study.run_folder import RunFolder

    say = lambda text: typer.echo(text, err=True)  # noqa: E731
    if (Path(target) / artefact.MANIFEST).is_file():
        if trials:
            raise BadInput(f"{target} is an artefact, which has no trials; leave out --trial")
        return measure_artefact(Path(target), wanted, data_overrides(settings), say)
    if settings:
        raise BadInput("--set changes the recorded data of an artefact; a run has its own study.yaml")
    found = read_front(target)
    chosen = [found.choose(Selector(trial=number)) for number in trials or ()] or list(found.trials)
    if not chosen:
        raise BadInput(f"no trial of {target} has finished yet, so there is nothing to measure")
    return measure_run(RunFolder(found.record.folder), chosen, wanted, say)
