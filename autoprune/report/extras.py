"""Columns of a front that only some studies have: the int8 file of a model, and what was certified of it.

They stand beside the accuracy of the float32 model and never in its place or on its axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoprune.study.records import TrialRecord

METRICS = (
    "int8_accuracy", "int8_bytes", "float_bytes", "certified_accuracy", "attacked_accuracy", "certified_epsilon",
)  # fmt: skip
_INT8, _CERTIFIED = "int8_accuracy", "certified_accuracy"


def headings(trials: Sequence[TrialRecord]) -> list[str]:
    """Return the headings of the columns that any of the trials has a value for."""
    found = ["int8", "int8 size"] if _has(trials, _INT8) else []
    if _has(trials, _CERTIFIED):
        radii = sorted({t.metrics["certified_epsilon"] for t in trials if _CERTIFIED in t.metrics})
        found.append("certified" if len(radii) > 1 else f"certified ({radii[0]:g})")
    return found


def cells(metrics: Mapping[str, float], shown: Sequence[str]) -> list[str]:
    """Return the values of one row for these headings, `-` where there is none."""
    found: list[str] = []
    if "int8" in shown:
        size = metrics.get("int8_bytes", math.nan)
        found += [_share(metrics, _INT8), f"{size / 1024:.0f} KiB" if math.isfinite(size) else "-"]
    if any(heading.startswith("certified") for heading in shown):
        told = _share(metrics, _CERTIFIED)
        found.append(told if "certified" not in shown or told == "-" else f"{told} ({metrics['certified_epsilon']:g})")
    return found


def legend(shown: Sequence[str]) -> str:
    """Return what the columns say, empty without any."""
    told = ""
    if "int8" in shown:
        told += " int8: validation accuracy and size of the model's quantised file; all other accuracies are float32."
    if any(heading.startswith("certified") for heading in shown):
        told += (
            " certified: validation samples whose class is proven to stay for all inputs within that epsilon in every "
            "pixel."
        )
    return told


def _has(trials: Sequence[TrialRecord], metric: str) -> bool:
    return any(metric in t.metrics for t in trials)


def _share(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name, math.nan)
    return f"{100 * value:.2f} %" if math.isfinite(value) else "-"
