"""Columns of a front that only some studies have: the int8 file of a model, what it takes, what was certified of it.

A study shows the accuracy of one kind of artefact. As a rule it is the float32 model's, with the int8 file's in a
column of its own; where size, memory or energy are objectives it is that of what is deployed, with the float32 model's
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

METRICS = (
    "int8_accuracy", "int8_bytes", "float_bytes", "float_accuracy",
    "deployed_bytes", "deployed_bytes_fraction", "deployed_activation_bytes", "deployed_activation_bytes_fraction",
    "deployed_energy_uj", "deployed_energy_uj_fraction",
    "certified_accuracy", "attacked_accuracy", "certified_epsilon",
)  # fmt: skip
_INT8, _CERTIFIED, _DEPLOYED = "int8_accuracy", "certified_accuracy", "deployed_bytes"
_RESOURCES = {
    "size": _DEPLOYED,
    "memory": "deployed_activation_bytes",
    "energy": "deployed_energy_uj",
}
_FILE = ("file", *_RESOURCES, "float32")


def headings(rows: Sequence[Mapping[str, float]], objectives: Sequence[str] | None = None) -> list[str]:
    """Return the headings of the columns that any of the rows, metrics of a model each, has a value for.

    objectives: where the line is short, of what a file takes only what is an objective.
    """
    found = ["int8", "int8 size"] if _has(rows, _INT8) else []
    if _has(rows, _DEPLOYED):
        found = [name for name in _FILE if objectives is None or name == "file" or name in objectives]
    if _has(rows, _CERTIFIED):
        radii = sorted({metrics["certified_epsilon"] for metrics in rows if _CERTIFIED in metrics})
        found.append("certified" if len(radii) > 1 else f"certified ({radii[0]:g})")
    return found


def cells(metrics: Mapping[str, float], shown: Sequence[str]) -> list[str]:
    """Return the values of one row for these headings, `-` where there is none."""
    found = [cell for name, cell in _deployed(metrics).items() if name in shown]
    if "int8" in shown:
        size = metrics.get("int8_bytes", math.nan)
        found += [_share(metrics, _INT8), f"{size / 1024:.0f} KiB" if math.isfinite(size) else "-"]
    if any(heading.startswith("certified") for heading in shown):
        told = _share(metrics, _CERTIFIED)
        found.append(told if "certified" not in shown or told == "-" else f"{told} ({metrics['certified_epsilon']:g})")
    return found


def legend(shown: Sequence[str]) -> str:
    """Return what the columns say, empty without any."""
    told = "".join(text for name, text in _LEGENDS.items() if name in shown)
    if any(name in shown for name in _RESOURCES):
        told += "; in brackets in per cent of the base model's."
    if "int8" in shown:
        told += " int8: validation accuracy and size of the model's quantised file; all other accuracies are float32."
    if any(heading.startswith("certified") for heading in shown):
        told += (
            " certified: validation samples whose class is proven to stay for all inputs within that epsilon in every "
            "pixel."
        )
    return told


_LEGENDS = {
    "file": (
        " Accuracies are those of what is deployed (file): the int8 file where the recipe quantises, else the float32 "
        "model"
    ),
    "float32": "; float32: validation accuracy of the model before that",
    "size": "; size: of the int8 file, or of float32 weights and buffers",
    "memory": "; memory: activations of one sample that are alive at once, counted on the graph",
    "energy": "; energy: a proxy, no measurement",
}


def _deployed(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the cells of `_FILE`, by heading."""
    if _DEPLOYED not in metrics:
        return dict.fromkeys(_FILE, "-")
    told = {
        name: f"{_amount(metrics, key)} ({100 * metrics[f'{key}_fraction']:.0f} %)" for name, key in _RESOURCES.items()
    }
    file = "int8" if _INT8 in metrics else "float32"
    return {"file": file, **told, "float32": _share(metrics, "float_accuracy")}


def _amount(metrics: Mapping[str, float], key: str) -> str:
    return f"{metrics[key]:.3g} uJ" if key.endswith("uj") else f"{metrics[key] / 1024:.0f} KiB"


def _has(rows: Sequence[Mapping[str, float]], metric: str) -> bool:
    return any(metric in metrics for metrics in rows)


def _share(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name, math.nan)
    return f"{100 * value:.2f} %" if math.isfinite(value) else "-"
