"""Commands about a study: launch, check, status, show."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli import common
from autoprune.cli.results import RunArgument, read_front

if TYPE_CHECKING:
    from autoprune.report.front import Front
    from autoprune.study.config import Loaded

StudyArgument = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="YAML file, or the name of one in studies/.", show_default=False),
]


class ExecutorChoice(StrEnum):
    """Where trials run."""

    local = "local"
    ray = "ray"
    inline = "inline"
    replay = "replay"


def launch(
    study: StudyArgument,
    target_flops: Annotated[
        str | None, typer.Option(metavar="FRACTIONS", help="Shares of the base model's FLOPs, e.g. 0.5,0.35.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, baselines included.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="For example 90s, 30m or 2h.")] = None,
    executor: Annotated[ExecutorChoice | None, typer.Option(help="Where trials run.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at the same time.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster.")] = None,
    storage: Annotated[str | None, typer.Option(help="URL of the database that keeps the study.")] = None,
    warm_start: Annotated[
        str | None, typer.Option(metavar="RUN", help="Begin with the best recipes of this earlier run.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the whole study.")] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Run a study, or resume it when its run folder is there."""
    from autoprune.cli.progress import following
    from autoprune.report.front import Front
    from autoprune.report.html import write_report
    from autoprune.study.config import load
    from autoprune.study.launch import launch as run
    from autoprune.study.run_folder import default_run

    flags = {
        "targets": common.fractions_of(target_flops, "--target-flops"),
        "budget.trials": trials,
        "budget.time": time_budget,
        "executor.name": None if executor is None else executor.value,
        "executor.workers": workers,
        "executor.address": address,
        "storage": storage,
        "warm_start": warm_start,
        "seed": seed,
    }
    config = load(study, common.overrides_of(settings, flags)).config
    folder = run_dir or default_run(config)
    try:
        with following(common.console(stderr=as_json), config) as listen:
            record = run(config, run_dir=folder, listen=listen)
    except KeyboardInterrupt:
        common.fail(
            f"interrupted; everything finished is kept in {folder}. The same command goes on from there",
            common.INTERRUPTED,
        )
    found = Front.of(record)
    path = write_report(found)
    if as_json:
        common.print_json(found.plain() | {"report": str(path)})
    else:
        _say_result(found, folder, path)
    if not len(found):
        common.fail(f"no trial finished; 'autoprune status {folder}' lists the failures", common.FAILED)


def check(study: StudyArgument, settings: common.SetOption = None, as_json: common.JsonOption = False) -> None:
    """Pre-flight, in seconds: groups, blocks, what is frozen and why, reachable FLOPs, a forecast of the cost."""
    from autoprune.report.preflight import plain_preflight, print_preflight
    from autoprune.study.config import load
    from autoprune.study.preparation import preflight

    found = plain_preflight(preflight(load(study, common.overrides_of(settings, {})).config))
    if as_json:
        common.print_json(found)
        return
    print_preflight(common.console(), found)
    for warning in found["warnings"]:
        typer.echo(f"Warning: {warning}")


def status(run: RunArgument, as_json: common.JsonOption = False) -> None:
    """Show how far a study is: progress, the best model of each target, rungs, failures, disk use."""
    from autoprune.report import tables
    from autoprune.study.disk import size_of
    from autoprune.study.run_folder import RunFolder

    found = read_front(run)
    counts = tables.counts_by_state(found.record.trials)
    planned = found.record.config.budget.trials
    rungs = _rungs_reached(found)
    if as_json:
        common.print_json(_plain_status(found, counts, rungs))
        return
    out = common.console()
    over = counts["done"] + counts["stopped"] + counts["failed"]
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    time = tables.duration(found.record.seconds)
    disk = size_of(RunFolder(found.record.folder))
    typer.echo(f"{found.record.config.name}: {over} of {planned} trials are over ({told or 'none begun'}), {time}")
    typer.echo(f"{found.record.folder} takes {tables.human(disk)}B")
    tables.print_best_by_target(out, found)
    rows = [[str(rung), f"{epochs:g}", str(n)] for rung, (epochs, n) in enumerate(rungs)]
    tables.print_mapping(out, "Rungs", rows, ("rung", "epochs in total", "trials that reached it"))
    tables.print_failures(out, found.record.trials)


def show(study: StudyArgument, settings: common.SetOption = None, as_json: common.JsonOption = False) -> None:
    """Show every value of a study and where it came from."""
    from autoprune.report import tables
    from autoprune.study.config import load

    found = load(study, common.overrides_of(settings, {}))
    if as_json:
        common.print_json({"source": found.source, "values": found.config.plain(), "origins": dict(found.origins)})
        return
    rows = [[key, value, origin] for key, value, origin in _values(found)]
    tables.print_mapping(common.console(), found.source, rows, ("key", "value", "from"))


def _say_result(found: Front, folder: Path, report: Path) -> None:
    from autoprune.report import tables

    out = common.console()
    tables.print_failures(out, found.record.trials)
    if len(found):
        tables.print_front(out, found)
    typer.echo(f"Report: {report}")
    if len(found):
        target = found.record.config.targets[0].flops_fraction
        chosen = "--knee" if target is None else f"--target-flops {target:g}"
        typer.echo(f"Next: autoprune pick {shown(folder)} {chosen} --out {found.record.config.name}-model")


def shown(folder: Path) -> str:
    """Return a run folder as the user would type it: its name when it lies under runs/."""
    from autoprune.study.run_folder import RUNS

    inside = folder.absolute().parent == RUNS.absolute()
    return folder.name if inside else str(folder)


def _rungs_reached(found: Front) -> list[tuple[float, int]]:
    trials = found.record.trials
    epochs = found.record.config.rungs.epochs
    return [(e, sum(len(t.rungs) > rung for t in trials)) for rung, e in enumerate(epochs)]


def _plain_status(found: Front, counts: dict[str, int], rungs: list[tuple[float, int]]) -> dict[str, Any]:
    from autoprune.report import tables
    from autoprune.report.quality import hypervolume_over
    from autoprune.study.disk import size_of
    from autoprune.study.run_folder import RunFolder

    record = found.record
    progress = hypervolume_over(record.trials)
    return {
        "study": record.config.name,
        "run": str(record.folder),
        "planned": record.config.budget.trials,
        "trials": counts,
        "seconds": record.seconds,
        "disk_bytes": size_of(RunFolder(record.folder)),
        "best": tables.best_plain(found),
        "rungs": [{"rung": i, "epochs": e, "reached": n} for i, (e, n) in enumerate(rungs)],
        "hypervolume": progress[-1][1] if progress else 0.0,
        "running": [
            {"trial": t.number, "target": t.target_label, "baseline": t.baseline, "rungs_done": len(t.rungs)}
            for t in record.trials
            if t.state == "running"
        ],
        "failures": [
            {"trial": t.number, "kind": t.error_kind, "reason": t.error} for t in record.trials if t.state == "failed"
        ],
    }


def _values(found: Loaded) -> list[tuple[str, str, str]]:
    from autoprune.report.tables import as_text
    from autoprune.study.config import leaves

    values = leaves(found.config.model_dump(mode="json"))
    return [(key, as_text(value), found.origins.get(key, "default")) for key, value in values]
