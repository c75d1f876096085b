"""What a single compression found, as plain data and as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autoprune.cli import common

if TYPE_CHECKING:
    from autoprune.trial import Outcome


def plain_outcome(outcome: Outcome, out: Path) -> dict[str, Any]:
    """Return a single compression as plain data."""
    return {
        "folder": str(out),
        "metrics": outcome.metrics,
        "accuracy_before_training": outcome.before_training.accuracy,
        "notes": list(outcome.notes),
        "seconds": outcome.cost.seconds,
        "trained_samples": outcome.cost.trained_samples,
        "recipe": outcome.recipe.plain(),
    }


def print_outcome(outcome: Outcome, out: Path) -> None:
    """Print what a single compression found."""
    from autoprune.report.tables import duration, human, percent, print_mapping

    found = outcome.validation
    rows = [
        ["validation accuracy", percent(found.accuracy)],
        ["before training", percent(outcome.before_training.accuracy)],
        ["FLOPs", f"{human(found.flops)} ({100 * found.flops_fraction:.1f} % of the base model)"],
        ["parameters", f"{human(found.params)} ({100 * found.params_fraction:.1f} %)"],
        *latency_rows(outcome.metrics),
        *sparse_rows(found.sparsity, found.sparse_flops, found.sparse_flops_fraction),
        *dynamic_rows(outcome.metrics),
        *int8_rows(outcome.metrics),
        *certified_rows(outcome.metrics),
        ["trained on", f"{human(outcome.cost.trained_samples)} samples"],
        ["time", duration(outcome.cost.seconds)],
    ]
    print_mapping(common.console(), f"Saved to {out}", rows, ("", "value"))
    for note in outcome.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"Next: autoprune evaluate {out}")


def latency_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Return the row about a measured share of the base model's time, none where that was no target."""
    if "latency_fraction" not in metrics:
        return []
    told = (
        f"{metrics['latency_ms']:.3f} ms ({100 * metrics['latency_fraction']:.1f} % of the base model, timed in turns)"
    )
    return [["time of one sample", told]]


def sparse_rows(sparsity: float, flops: float, fraction: float | None = None) -> list[list[str]]:
    """Return the rows about single weights that are zero, none for a model without."""
    from autoprune.report.tables import human, percent

    if not sparsity:
        return []
    share = "" if fraction is None else f" ({100 * fraction:.1f} % of the base model)"
    return [
        ["weights that are zero", percent(sparsity)],
        ["sparse FLOPs, were zeros skipped", f"{human(flops)}{share}"],
    ]


def dynamic_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Return the rows about layers whose cost depends on their input, none for a model without."""
    from autoprune.report.tables import human, percent

    if "channel_share" not in metrics:
        return []
    mean, spread = (human(metrics[name]) for name in ("dynamic_flops", "dynamic_flops_spread"))
    part = metrics.get("dynamic_flops_fraction")
    share = "" if part is None else f" ({100 * part:.1f} % of the base model)"
    return [
        ["dynamic FLOPs, measured", f"{mean} ± {spread} over samples{share}"],
        ["dynamic FLOPs without overhead", human(metrics["dynamic_flops_without_overhead"])],
        ["channels left in hashed layers", percent(metrics["channel_share"])],
    ]


def int8_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Return the rows about a quantised file, none without one."""
    from autoprune.report.tables import percent, points

    if "int8_accuracy" not in metrics:
        return []
    accuracy = metrics["int8_accuracy"]
    drop = accuracy - metrics.get("float_accuracy", metrics["accuracy"])
    sizes = f"{size(int(metrics['int8_bytes']))} (float32: {size(int(metrics['float_bytes']))})"
    return [["int8 file, validation accuracy", f"{percent(accuracy)} ({points(drop)})"], ["int8 file, size", sizes]]


def certified_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Return the rows about certified accuracy, none where it was not measured."""
    from autoprune.report.tables import percent

    if "certified_accuracy" not in metrics:
        return []
    where = f"{metrics['certified_count']:.0f} samples, epsilon {metrics['certified_epsilon']:g}"
    names = {"certified_clean_accuracy": "clean", "attacked_accuracy": "attacked", "certified_accuracy": "certified"}
    return [[f"{told} accuracy ({where})", percent(metrics[name])] for name, told in names.items()]


def size(count: int) -> str:
    """Return a number of bytes with a unit."""
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
