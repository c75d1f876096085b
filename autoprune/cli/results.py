"""Commands about a study's results: front, pick, report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli import common
from autoprune.errors import BadInput

if TYPE_CHECKING:
    from autoprune.report.front import Front

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder, or its name under runs/.", show_default=False)
]


def read_front(run: str) -> Front:
    """Return the front of a run as it is recorded. Raises UnknownName for a run that does not exist."""
    from autoprune.report.front import Front
    from autoprune.study.records import read_study
    from autoprune.study.run_folder import find_run

    folder = find_run(run)
    return Front.of(read_study(folder.config(), folder.path))


def front(
    run: RunArgument,
    as_json: common.JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV, and nothing else, to standard output.")] = False,
) -> None:
    """Show the Pareto front, with the baselines at equal FLOPs."""
    from autoprune.report import tables
    from autoprune.report.speed_tables import print_speed

    if as_json and as_csv:
        raise BadInput("--json and --csv exclude each other")
    found = read_front(run)
    if as_json:
        common.print_json(found.plain())
    elif as_csv:
        typer.echo(found.csv(), nl=False)
    elif not len(found):
        typer.echo(f"No trial of {run} has finished yet. 'autoprune status {run}' shows how far it is.")
    else:
        tables.print_front(common.console(), found)
        print_speed(common.console(), found.speeds)
        typer.echo(f"Next: autoprune pick {run} --trial {found.trials[0].number} --out DIR")


def pick(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for the model; new or empty.", show_default=False)],
    target_flops: Annotated[
        float | None, typer.Option(help="The most accurate with at most this share of the FLOPs.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="The cheapest with at least this validation accuracy (0 to 1).")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="The cheapest that loses at most this much accuracy (0.01: one point)."),
    ] = None,
    trial: Annotated[int | None, typer.Option(help="This trial.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The best bend of the front.")] = False,
    polished: Annotated[bool, typer.Option(help="Take the trial's polished model, where it has one.")] = True,
    check: Annotated[bool, typer.Option(help="Evaluate the saved model in a fresh process.")] = True,
    as_json: common.JsonOption = False,
) -> None:
    """Save one model of the front as an artefact, checked in a fresh process."""
    from autoprune.report.front import plain_trial
    from autoprune.report.quality import accuracy, accuracy_on_test, flops_fraction
    from autoprune.report.tables import percent

    chosen = read_front(run).pick(
        target_flops=target_flops, min_accuracy=min_accuracy, max_drop=max_drop, trial=trial, knee=knee, polish=polished
    )
    folder = chosen.save(out, check=check)
    found = chosen.trial
    if as_json:
        common.print_json({"folder": str(folder), "checked": check} | plain_trial(found))
        return
    tested = accuracy_on_test(found)
    seen = f", test {percent(tested)}" if math.isfinite(tested) else ""
    how = "" if chosen.repeat is None else ", polished,"
    typer.echo(
        f"Saved trial {found.number}{how} to {folder}: {100 * flops_fraction(found):.1f} % of the FLOPs, "
        f"validation accuracy {percent(accuracy(found))}{seen}"
    )
    if check:
        typer.echo("Checked: a fresh process loads it and measures the same accuracy and FLOPs of its float32 model.")
    typer.echo(f"Next: autoprune evaluate {folder}; autoprune export {folder} --format onnx")


def scratch(
    run: RunArgument,
    trial: Annotated[
        list[int] | None, typer.Option(help="This trial, finished; repeatable. By default the whole front.")
    ] = None,
    arm: Annotated[
        str, typer.Option(help="e: as many epochs as the base model; b: as much computation; eb: both.")
    ] = "eb",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 3,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="Epochs of the base model; needed when it came with weights.")
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Train the front's architectures from scratch under a fair budget: what the inherited weights are worth."""
    from autoprune.report import tables
    from autoprune.report.html import write_report
    from autoprune.report.scratch import ARMS, rows, train_from_scratch
    from autoprune.report.selection import Selector
    from autoprune.study.run_folder import RunFolder

    arms = [one for one in ARMS if one in arm]
    if not arms or set(arm) - set(ARMS):
        raise BadInput(f"--arm is e, b or eb, got {arm!r}")
    found = read_front(run)
    chosen = [found.choose(Selector(trial=number)) for number in trial or ()] or list(found.trials)
    if not chosen:
        raise BadInput(f"no trial of {run} has finished yet, so there is nothing to train from scratch")
    folder = found.record.folder
    say = lambda text: typer.echo(text, err=True)  # noqa: E731
    train_from_scratch(RunFolder(folder), chosen, arms=arms, seeds=seeds, epochs=epochs, say=say)
    write_report(found)
    if as_json:
        common.print_json(list(rows(folder, chosen)))
    else:
        tables.print_scratch(common.console(), found)


def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; report.html in the run folder.")] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Write the HTML report of a run again."""
    from autoprune.report.html import write_report

    path = write_report(read_front(run), out)
    if as_json:
        common.print_json({"report": str(path)})
    else:
        typer.echo(f"Report: {path}")


def polish(
    run: RunArgument,
    epochs: Annotated[float, typer.Option(help="Epochs of finetuning that are added.", show_default=False)],
    repeats: Annotated[
        int, typer.Option(help="Trainings of each model: its own, and its recipe again with other seeds.")
    ] = 1,
    trial: Annotated[
        list[int] | None, typer.Option(help="Only this trial, on the front or not. Repeatable.", show_default=False)
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Finetune the front's models for long; what is there already is not done again."""
    from autoprune.cli.progress import Lines, Progress
    from autoprune.report import tables
    from autoprune.report.front import Front
    from autoprune.report.html import write_report
    from autoprune.report.selection import Selector
    from autoprune.study.polish import polish as train
    from autoprune.study.run_folder import find_run

    found = read_front(run)
    chosen = [found.choose(Selector(trial=number)) for number in trial or ()] or list(found)
    if not chosen:
        raise BadInput(f"no trial of {run} has finished yet, so there is nothing to polish; 'autoprune launch' resumes")
    listen = Lines(common.console(stderr=as_json)).following(Progress(planned=0, targets=(), top=0))
    try:
        record, failures = train(find_run(run), chosen, epochs=epochs, repeats=repeats, listen=listen)
    except KeyboardInterrupt:
        common.fail("interrupted; every finished training is kept. The same command goes on", common.INTERRUPTED)
    after = Front.of(record)
    path = write_report(after)
    if as_json:
        common.print_json(after.plain() | {"report": str(path), "failures": failures})
    else:
        common.console().print(tables.polished_table(after))
        typer.echo(f"Report: {path}")
    if failures:
        common.fail(f"{len(failures)} of the trainings failed: {failures[0]}", common.FAILED)
