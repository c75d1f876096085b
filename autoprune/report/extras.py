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
_FILE = ("file", "size", "memory", "energy", "float32")


def headings(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the headings of the columns that any of the rows, metrics of a model each, has a value for."""
    found = list(_FILE) if _has(rows, _DEPLOYED) else ["int8", "int8 size"] if _has(rows, _INT8) else []
    if _has(rows, _CERTIFIED):
        radii = sorted({metrics["certified_epsilon"] for metrics in rows if _CERTIFIED in metrics})
        found.append("certified" if len(radii) > 1 else f"certified ({radii[0]:g})")
    return found


def cells(metrics: Mapping[str, float], shown: Sequence[str]) -> list[str]:
    """Return the values of one row for these headings, `-` where there is none."""
    found = _deployed(metrics) if "file" in shown else []
    if "int8" in shown:
        size = metrics.get("int8_bytes", math.nan)
        found += [_share(metrics, _INT8), f"{size / 1024:.0f} KiB" if math.isfinite(size) else "-"]
    if any(heading.startswith("certified") for heading in shown):
        told = _share(metrics, _CERTIFIED)
        found.append(told if "certified" not in shown or told == "-" else f"{told} ({metrics['certified_epsilon']:g})")
    return found


def legend(shown: Sequence[str]) -> str:
    """Return what the columns say, empty without any."""
    told = _LEGEND if "file" in shown else ""
    if "int8" in shown:
        told += " int8: validation accuracy and size of the model's quantised file; all other accuracies are float32."
    if any(heading.startswith("certified") for heading in shown):
        told += (
            " certified: validation samples whose class is proven to stay for all inputs within that epsilon in every "
            "pixel."
        )
    return told


_LEGEND = (
    " Accuracies are those of what is deployed (file): the int8 file where the recipe quantises, else the float32 "
    "model; float32: validation accuracy of the model before that. size: of the int8 file, or of float32 weights and "
    "buffers; memory: activations of one sample that are alive at once, counted on the graph; energy: a proxy, no "
    "measurement; in brackets each in per cent of the base model's."
)


def _deployed(metrics: Mapping[str, float]) -> list[str]:
    """Return the cells of `_FILE`."""
    if _DEPLOYED not in metrics:
        return ["-"] * len(_FILE)
    size, memory = (f"{metrics[name] / 1024:.0f} KiB" for name in (_DEPLOYED, "deployed_activation_bytes"))
    amounts = (size, memory, f"{metrics['deployed_energy_uj']:.3g} uJ")
    names = (_DEPLOYED, "deployed_activation_bytes", "deployed_energy_uj")
    shares = (f"{100 * metrics[f'{name}_fraction']:.0f} %" for name in names)
    told = [f"{amount} ({share})" for amount, share in zip(amounts, shares, strict=True)]
    return ["int8" if _INT8 in metrics else "float32", *told, _share(metrics, "float_accuracy")]


def _has(rows: Sequence[Mapping[str, float]], metric: str) -> bool:
    return any(metric in metrics for metrics in rows)


def _share(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name, math.nan)
    return f"{100 * value:.2f} %" if math.isfinite(value) else "-"
