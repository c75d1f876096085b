"""Tables for a terminal. Without one they come out as plain text."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from autoprune.report import extras, polished, scratch, speed
from autoprune.report.comparison import REFERENCE, gain, longer_trained
from autoprune.report.front import Front
from autoprune.report.quality import accuracy, accuracy_on_test, flops_fraction, has_sparsity, name_of, noise
from autoprune.report.significance import as_good_as_next
from autoprune.study.records import TrialRecord

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.report.catalogue import Entry

_SPARSE = ", by dense kernels; sparse FLOPs are those left were products with zero weights skipped"
_LEGEND_WIDTH = 120
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def human(value: float) -> str:
    """Return a count with three digits and a unit.

    >>> human(1_527_424), human(77_754), human(512)
    ('1.53M', '77.8k', '512')
    """
    if not math.isfinite(value):
        return "-"
    for scale, unit in _SCALES:
        if value >= scale * 0.9995:
            return f"{value / scale:.3g}{unit}" if value < scale * 999.5 else f"{value / scale:.0f}{unit}"
    return f"{value:.0f}"


def percent(value: float) -> str:
    """Return a share as per cent with two digits, `-` where there is none.

    >>> percent(0.97215), percent(float("nan"))
    ('97.21 %', '-')
    """
    return f"{100 * value:.2f} %" if math.isfinite(value) else "-"


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.2f}" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """Return seconds as a short duration.

    >>> duration(8.4), duration(75), duration(3725)
    ('8.4 s', '1 min 15 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def print_front(console: Console, front: Front) -> None:
    """Print the front and the baselines, target by target, below the base model."""
    console.print(front_table(front))
    console.print(textwrap.fill(_legend(front), min(console.width, _LEGEND_WIDTH), break_on_hyphens=False))
    if any(trial.polished for trial in front):
        console.print(polished_table(front))
    if scratch.read_runs(front.record.folder):
        print_scratch(console, front)


def print_scratch(console: Console, front: Front) -> None:
    """Print what the front's architectures reach from scratch, next to what finetuning reached."""
    table = Table(box=box.SIMPLE, title="From scratch", title_justify="left")
    for column in SCRATCH_COLUMNS:
        table.add_column(column, justify="left" if column in ("model", "split") else "right", no_wrap=True)
    for cells in scratch_cells(front):
        table.add_row(*cells)
    console.print(table)
    console.print(SCRATCH_LEGEND)


SCRATCH_COLUMNS = ("model", "split", "finetuned", "scratch-E", "scratch-B", "weight value", "training FLOPs of B")
SCRATCH_LEGEND = (
    "The same architectures with new weights, trained for as many epochs (E) or as much computation, at most "
    "twice the epochs (B),\nas the base model; mean and standard deviation over seeds. weight value: finetuned "
    "minus scratch-B. 'not trained': this model\nhas no such baseline."
)


def scratch_cells(front: Front) -> list[list[str]]:
    """Return the cells of every model of the front, and of the baselines, in the order of `SCRATCH_COLUMNS`."""
    return [
        [
            row["name"],
            row["split"],
            percent(row["finetuned"]),
            *(_from_scratch(row, arm) for arm in scratch.ARMS),
            "-" if row["weight_value"] is None else points(row["weight_value"]),
            "-" if row["scratch_b_training_flops"] is None else human(row["scratch_b_training_flops"]),
        ]
        for row in scratch.rows(front.record.folder, (*front.trials, *front.baselines))
    ]


def _from_scratch(row: Mapping[str, Any], arm: str) -> str:
    if row[f"scratch_{arm}"] is None:
        return "not trained"
    seeds = row[f"scratch_{arm}_seeds"]
    spread = f" ± {100 * row[f'scratch_{arm}_sd']:.2f}" if seeds > 1 else ""
    return f"{percent(row[f'scratch_{arm}'])}{spread} (n={seeds})"


def front_table(front: Front) -> Table:
    """Return the front with the baselines at equal FLOPs."""
    with_latency = any("latency_ms" in t.metrics for t in front)
    with_sparsity = has_sparsity((*front.trials, *front.baselines))
    table = Table(box=box.SIMPLE, title=f"Front of {front.record.config.name}", title_justify="left")
    columns = [
        "model",
        "FLOPs",
        "of base",
        "params",
        "of base",
        "validation",
        "vs " + REFERENCE,
        "test",
        "by rung",
    ]
    if with_latency:
        columns.insert(5, "latency")
    if with_sparsity:
        columns[3:3] = ["sparse FLOPs", "of base", "sparsity"]
    if front.speed_of:
        columns[3:3] = ["speed-up"]
    more = extras.headings([t.metrics for t in (*front.trials, *front.baselines)], front.record.config.objectives)
    columns[-1:-1] = more
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "by rung") else "right", no_wrap=True)
    cells = _base_cells(front.base, with_latency, with_sparsity, measured=bool(front.speed_of))
    cells[-1:-1] = extras.cells(front.base, more)
    table.add_row(*cells, end_section=True)
    for section in _sections(front):
        for i, trial in enumerate(section):
            cells = _trial_cells(front, trial, with_latency, with_sparsity)
            cells[-1:-1] = extras.cells(trial.metrics, more)
            style = None if trial in front.trials else "dim"
            table.add_row(*cells, style=style, end_section=i + 1 == len(section))
    return table


def polished_table(front: Front) -> Table:
    """Return what the last training gave the front's models."""
    table = Table(box=box.SIMPLE, title="After polishing", title_justify="left")
    columns, rows = polished_cells(front)
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    table.caption = "means over the trainings, ± 95 % confidence interval (Student's t)"
    table.caption_justify = "left"
    return table


def polished_cells(front: Front) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows about the last trainings; columns that only some studies have are means over them."""
    trained = [(trial, polished.averaged(trial)) for trial in front if trial.polished]
    more = extras.headings([found for _, found in trained])
    rows = []
    for trial, found in trained:
        epochs, tested = f"{polished.latest(trial)[0].epochs:g}", polished.on_test(trial)
        count = str(len(polished.latest(trial)))
        shown = str(polished.validation(trial))
        rows.append([name_of(trial), epochs, count, shown, str(tested or "-"), *extras.cells(found, more)])
    return ["model", "epochs", "trainings", "validation", "test", *more], rows


def _sections(front: Front) -> list[list[TrialRecord]]:
    """Return front members and baselines by target, largest target first; a target without any is left out."""
    shown = {t.number: t for t in (*front.trials, *front.baselines)}
    by_target: dict[str, list[TrialRecord]] = {}
    for trial in sorted(shown.values(), key=lambda t: (-flops_fraction(t), -accuracy(t))):
        by_target.setdefault(trial.target_label, []).append(trial)
    return [sorted(trials, key=lambda t: -accuracy(t)) for trials in by_target.values()]


def _base_cells(base: Mapping[str, float], with_latency: bool, with_sparsity: bool, *, measured: bool) -> list[str]:
    latency = [milliseconds(base.get("latency_ms", math.nan))] if with_latency else []
    return [
        "base model",
        human(base.get("flops", math.nan)),
        "100 %",
        *(["1x"] if measured else []),
        *sparse_cells({"sparse_flops_fraction": 1.0, "sparsity": 0.0, "sparse_flops": math.nan, **base}, with_sparsity),
        human(base.get("params", math.nan)),
        "100 %",
        *latency,
        percent(base.get("accuracy", math.nan)),
        "",
        percent(base.get("test_accuracy", math.nan)),
        "",
    ]


def _trial_cells(front: Front, trial: TrialRecord, with_latency: bool, with_sparsity: bool) -> list[str]:
    metrics = trial.metrics
    star = _mark(front, trial)
    latency = [milliseconds(metrics.get("latency_ms", math.nan))] if with_latency else []
    return [
        star + (name_of(trial) if trial.baseline is None else f"{trial.baseline} ({trial.number})"),
        human(metrics.get("flops", math.nan)),
        _share(flops_fraction(trial)),
        *speed.cell(front, trial),
        *sparse_cells(metrics, with_sparsity),
        human(metrics.get("params", math.nan)),
        _share(metrics.get("params_fraction", math.nan)),
        *latency,
        percent(accuracy(trial)),
        points(gain(front, trial)),
        percent(accuracy_on_test(trial)),
        " > ".join(f"{100 * r.metrics.get('accuracy', math.nan):.1f}" for r in trial.rungs),
    ]


def sparse_cells(metrics: Mapping[str, float], shown: bool) -> list[str]:
    """Return sparse FLOPs, their share of the base model's FLOPs, and the share of zeros; nothing unless shown."""
    names = ("sparse_flops", "sparse_flops_fraction", "sparsity")
    flops, fraction, sparsity = (metrics.get(name, math.nan) for name in names)
    return [human(flops), _share(fraction), _share(sparsity)] if shown else []


def _mark(front: Front, trial: TrialRecord) -> str:
    """Return `* ` for the front, `~ ` for a trial of it whose next cheaper neighbour is as good."""
    if trial not in front.trials:
        return "  "
    return "~ " if trial.number in as_good_as_next(front.trials) else "* "


def _legend(front: Front) -> str:
    config = front.record.config
    epochs = ", ".join(f"{e:g}" for e in config.rungs.epochs)
    shown = (*front.trials, *front.baselines)
    sparse = has_sparsity(shown)
    more = extras.headings([t.metrics for t in shown], front.record.config.objectives)
    return (
        "* on the front; ~ on it too, but its next cheaper neighbour is as good within the noise (95 %). FLOPs are 2 x "
        f"MACs for one sample{_SPARSE if sparse else ''}. validation: accuracy on the split that the search saw; "
        "test: on one that it did not see, '-' where not measured. by rung: validation accuracy in per cent "
        f"after {epochs} epochs. {noise(front.trials)}{longer_trained(front)}"
        f"{extras.legend(more)}{speed.legend(front)}"
    )


def print_best_by_target(console: Console, front: Front) -> None:
    """Print the best model so far at every target."""
    table = Table(box=box.SIMPLE, title="Best so far", title_justify="left")
    for column in ("target", "model", "FLOPs", "validation", "vs " + REFERENCE):
        table.add_column(column, justify="left" if column in ("target", "model") else "right")
    for target in targets_of(front):
        best = front.best_of(target)
        if best is None:
            table.add_row(target, "-", "-", "-", "-")
        else:
            cells = (human(best.metrics["flops"]), percent(accuracy(best)), points(gain(front, best)))
            table.add_row(target, name_of(best), *cells)
    console.print(table)


def targets_of(front: Front) -> tuple[str, ...]:
    """Return the short names of a study's targets."""
    from autoprune.study.config import target_label

    return tuple(target_label(t) for t in front.record.config.targets)


def best_plain(front: Front) -> dict[str, Any]:
    """Return the best trial of every target as plain data."""
    found = {target: front.best_of(target) for target in targets_of(front)}
    return {
        target: best and {"trial": best.number, "accuracy": accuracy(best), "flops_fraction": flops_fraction(best)}
        for target, best in found.items()
    }


def counts_by_state(trials: Sequence[TrialRecord]) -> dict[str, int]:
    """Return how many trials are in each state; duplicates, which never ran, are left out."""
    states = ("done", "stopped", "failed", "running", "waiting")
    return {state: sum(t.state == state for t in trials) for state in states}


def print_failures(console: Console, trials: Sequence[TrialRecord]) -> None:
    """Print failed trials with their reasons, if there are any."""
    failed = [t for t in trials if t.state == "failed"]
    if not failed:
        return
    table = Table(box=box.SIMPLE, title="Failed trials", title_justify="left")
    for column in ("trial", "kind", "reason"):
        table.add_column(column)
    for trial in failed:
        table.add_row(str(trial.number), trial.error_kind or "-", trial.error or "-")
    console.print(table)


def print_mapping(console: Console, title: str, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Print rows of text under a title."""
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_catalogue(console: Console, found: Sequence[Entry]) -> None:
    """Print methods and presets by room, each with its paper and its hyperparameters."""
    room = ""
    for entry in found:
        if entry.room != room:
            room = entry.room
            console.print(f"\n[bold]{room}[/bold]")
        console.print(f"  [bold]{entry.name}[/bold]  {entry.summary}", soft_wrap=True)
        console.print(f"      {entry.paper}", style="dim", soft_wrap=True)
        if entry.effort is not None:
            console.print(f"      forward passes per sample: {entry.effort}", soft_wrap=True)
        for h in entry.hyperparameters:
            line = f"      {h.name} = {h.default}   {h.valid}; searched {h.search}   {h.help}"
            console.print(line, markup=False, soft_wrap=True)


def as_text(value: Any) -> str:
    """Return a value of a configuration as it would stand in YAML's flow style."""
    return value if isinstance(value, str) else json.dumps(value)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


def milliseconds(value: float) -> str:
    """Return a time with its unit, `-` where there is none."""
    return f"{value:.2f} ms" if value >= 1 else f"{value:.3f} ms" if math.isfinite(value) else "-"
