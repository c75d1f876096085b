"""What `autoprune check` tells: plain data, and tables of the same numbers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from autoprune.report import tables
from autoprune.study.config import target_label

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.study.preparation import Preflight


def plain_preflight(found: Preflight) -> dict[str, Any]:
    """Return everything that is known before the first trial, ready for JSON."""
    return {
        "study": found.config.name,
        "structure": found.base.structure.describe(),
        "targets": {target_label(t): "reachable" for t in found.config.targets},
        "warnings": list(found.warnings),
        "methods": [f"{room}.{name}" for room, name in found.methods],
        "dimensions": len(found.dimensions),
        "samples": {
            "train": len(found.data.train),
            "validation": len(found.data.validation),
            "test": None if found.data.test is None else len(found.data.test),
        },
        "forward": dataclasses.asdict(found.forward),
        "forecast": dataclasses.asdict(found.forecast),
    }


def print_preflight(console: Console, plain: dict[str, Any]) -> None:
    """Print what `plain_preflight` returned: groups, frozen groups, blocks, a summary."""
    _print_groups(console, plain["structure"])
    _print_blocks(console, plain["structure"])
    tables.print_mapping(console, plain["study"], _summary(plain), ("", "value"))


def _print_groups(console: Console, structure: dict[str, Any]) -> None:
    share = tables.percent
    groups = [
        [g["name"], g["kind"], str(g["units"]), str(g["min_units"]), share(g["flops_share"]), share(g["params_share"])]
        for g in structure["groups"]
    ]
    title = f"Groups that can be cut: {len(groups)} ({structure['units']} units)"
    tables.print_mapping(
        console, title, groups, ("group", "unit", "units", "least", "FLOPs it alone saves", "parameters")
    )
    frozen = [[f["name"], str(f["size"]), f["module"], f["reason"]] for f in structure["frozen"]]
    tables.print_mapping(console, f"Frozen groups: {len(frozen)}", frozen, ("group", "units", "module", "why"))


def _print_blocks(console: Console, structure: dict[str, Any]) -> None:
    share = tables.percent
    blocks = [
        [b["name"], "yes" if b["first_of_stage"] else "", share(b["flops_share"]), share(b["params_share"])]
        for b in structure["blocks"]
    ]
    together = share(sum(b["flops_share"] for b in structure["blocks"]))
    title = f"Blocks that can be skipped: {len(blocks)} ({together} of the FLOPs)"
    tables.print_mapping(console, title, blocks, ("block", "first of its stage", "FLOPs", "parameters"))
    fixed = [[b["name"], b["reason"]] for b in structure["fixed_blocks"]]
    if fixed:
        tables.print_mapping(console, f"Blocks that have to stay: {len(fixed)}", fixed, ("block", "why"))


def _summary(plain: dict[str, Any]) -> list[list[str]]:
    structure, forward, forecast = plain["structure"], plain["forward"], plain["forecast"]
    flops, params = structure["reachable_flops"], structure["reachable_params"]
    return [
        ["FLOPs (2 x MACs, one sample)", tables.human(structure["flops"])],
        ["parameters", tables.human(structure["params"])],
        ["removable by cutting units", f"{_share(flops)} of the FLOPs, {_share(params)} of the parameters"],
        ["reachable by cutting units", f"{_range(flops)} of the FLOPs"],
        ["and by skipping blocks", f"{_range(structure['reachable_with_blocks'])} of the FLOPs"],
        ["operators without a rule", ", ".join(structure["unsupported"]) or "none"],
        ["targets, all reachable", ", ".join(plain["targets"])],
        ["search dimensions", str(plain["dimensions"])],
        ["methods", ", ".join(plain["methods"])],
        ["samples", ", ".join(f"{n} {split}" for split, n in plain["samples"].items() if n is not None)],
        [
            f"forward pass on {forward['device']}",
            f"{forward['sample_ms']:.3g} ms for one sample, {forward['batch_ms']:.3g} ms for {forward['batch']}",
        ],
        ["trials expected at each rung", ", ".join(f"{n:.0f}" for n in forecast["jobs"])],
        ["samples trained on", tables.human(forecast["trained_samples"])],
        [
            "forecast",
            f"{tables.duration(forecast['seconds'])} of training and evaluation, {forecast['workers']} workers",
        ],
    ]


def _share(reachable: list[float]) -> str:
    return tables.percent(1 - reachable[0])


def _range(reachable: list[float]) -> str:
    low, high = reachable
    return f"{low:.3f} to {high:g}"
