"""The report's figures as plain data for plotly.js. `@blue` stands for the page's colour of that name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.report.front import Front
from autoprune.report.quality import (
    accuracy,
    accuracy_on_test,
    axis_of,
    finished,
    flops_fraction,
    hypervolume_over,
    name_of,
)
from autoprune.report.tables import human, percent
from autoprune.study.records import TrialRecord

Figure = dict[str, Any]

_BASELINE_SYMBOLS = ("square", "triangle-up", "triangle-down", "cross")
_RUNG_COLOURS = ("@soft", "@orange", "@green", "@blue")
# From orange (little is kept) to blue, all light enough for dark text on it in both colour schemes.
_KEPT_COLOURS = [[0, "#f6b26b"], [0.5, "#eef1f4"], [1, "#63ade8"]]
# Room around the points, as a share of their spread.
_MARGIN = 0.08
_AXES = {
    "flops_fraction": "FLOPs, % of the base model",
    "sparse_flops_fraction": "sparse FLOPs (were zeros skipped), % of the base model",
    "dynamic_flops_fraction": "dynamic FLOPs (measured, depend on the input), % of the base model",
    "deployed_bytes_fraction": "size of what is deployed, % of the base model",
    "deployed_activation_bytes_fraction": "peak activation memory of what is deployed, % of the base model",
    "deployed_energy_uj_fraction": "energy proxy of what is deployed, % of the base model",
}


def figures(front: Front, group_sizes: Mapping[str, int]) -> dict[str, Figure]:
    """Return every figure that the study has points for, by the id of its place in the page."""
    if not finished(front.record.trials):
        return {}
    found = {"front": front_figure(front), "hypervolume": hypervolume_figure(front)}
    found["trials"] = trials_figure(front)
    if group_sizes:
        found["kept"] = kept_figure(front, group_sizes)
    return found


def front_figure(front: Front) -> Figure:
    """Return accuracy over the cost of `axis_of`: the front, other finished trials, baselines, the base model."""
    axis = axis_of(front.objectives)
    on_front = {t.number for t in front.trials}
    others = [t for t in finished(front.record.trials) if t.number not in on_front and t.baseline is None]
    data = [_points(others, axis, "other finished trials", "@soft", "circle-open", 8)]
    names = list(dict.fromkeys(t.baseline for t in front.baselines))
    for i, name in enumerate(names):
        own = sorted((t for t in front.baselines if t.baseline == name), key=lambda t: t.metrics.get(axis, 0.0))
        symbol = _BASELINE_SYMBOLS[i % len(_BASELINE_SYMBOLS)]
        data.append(_points(own, axis, f"baseline {name}", "@orange", symbol, 10, dash="dot" if i == 0 else "dash"))
    members = sorted(front.trials, key=lambda t: t.metrics.get(axis, 0.0))
    data.append(_points(members, axis, "front", "@blue", "circle", 12, dash="solid"))
    if any(t.test for t in members):
        data.append(_test_points([t for t in members if t.test], axis))
    if "accuracy" in front.base:
        data.append(_base_point(front.base))
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": {
            "xaxis": {"title": {"text": _AXES[axis]}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "validation accuracy, %"}, "range": _range(_finished_heights(front))},
            "hovermode": "closest",
        },
    }


def trials_figure(front: Front) -> Figure:
    """Return every trial's accuracy at each of its rungs, by trial number."""
    trials = [t for t in front.record.trials if t.rungs]
    stems: Figure = {"x": [], "y": []}
    for trial in trials:
        heights = [100 * r.metrics["accuracy"] for r in trial.rungs]
        stems["x"] += [trial.number, trial.number, None]
        stems["y"] += [min(heights), max(heights), None]
    data = [
        stems
        | {
            "mode": "lines",
            "line": {"color": "@line", "width": 2},
            "hoverinfo": "skip",
            "showlegend": False,
            "type": "scatter",
        }
    ]
    epochs = front.record.config.rungs.epochs
    top = len(epochs) - 1
    for rung, trained in enumerate(epochs):
        there = [t for t in trials if len(t.rungs) > rung]
        name = f"rung {rung} ({trained:g} epochs)"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [t.number for t in there],
                "y": [100 * t.rungs[rung].metrics["accuracy"] for t in there],
                "text": [_hover(t) for t in there],
                "hovertemplate": "%{text}<extra>" + name + "</extra>",
                "marker": {
                    "color": _RUNG_COLOURS[-1] if rung == top else _RUNG_COLOURS[min(rung, 2)],
                    "size": 9 if rung == top else 7,
                    "symbol": "circle" if rung == top else "circle-open",
                },
            }
        )
    failed = [t for t in front.record.trials if t.state == "failed"]
    data.append(_failed_points(failed, front))
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": {
            "xaxis": {"title": {"text": "trial"}, "range": _trial_range(front)},
            "yaxis": {"title": {"text": "validation accuracy, %"}},
            "hovermode": "closest",
        },
    }


def hypervolume_figure(front: Front) -> Figure:
    """Return the hypervolume after every finished trial, in the order of their numbers."""
    found = hypervolume_over(front.record.trials, axis_of(front.objectives))
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [number for number, _ in found],
        "y": [value for _, value in found],
        "line": {"shape": "hv", "color": "@blue", "width": 2},
        "marker": {"color": "@blue", "size": 6},
        "hovertemplate": "after trial %{x}: %{y:.4f}<extra></extra>",
        "showlegend": False,
    }
    layout = {
        "xaxis": {"title": {"text": "trial"}, "range": _trial_range(front)},
        "yaxis": {"title": {"text": "hypervolume"}, "range": _range([v for _, v in found])},
    }
    return {"data": [line], "layout": layout}


def kept_figure(front: Front, group_sizes: Mapping[str, int]) -> Figure:
    """Return the kept share of every group (columns) in every member of the front (rows)."""
    members = [t for t in reversed(front.trials) if _counts(t)]
    groups = list(group_sizes)
    shares = [[_kept(t, g, group_sizes[g]) for g in groups] for t in members]
    texts = [[f"{_units(t, g, group_sizes[g])} of {group_sizes[g]}" for g in groups] for t in members]
    heat = {
        "type": "heatmap",
        "x": groups,
        "y": [f"{name_of(t)}, {100 * flops_fraction(t):.0f} %" for t in members],
        "z": shares,
        "text": texts,
        "colorscale": _KEPT_COLOURS,
        "textfont": {"color": "#10151c"},
        "zmin": 0,
        "zmax": 100,
        "xgap": 1,
        "ygap": 1,
        "texttemplate": "%{z:.0f}",
        "hovertemplate": "%{y}<br>%{x}: %{text} units (%{z:.0f} %)<extra></extra>",
        "colorbar": {"title": {"text": "kept, %"}, "thickness": 12},
    }
    layout = {
        "xaxis": {"tickangle": -40, "showgrid": False, "type": "category"},
        "yaxis": {"showgrid": False, "type": "category"},
    }
    return {"data": [heat] if members else [], "layout": layout}


def _points(
    trials: Sequence[TrialRecord], axis: str, name: str, colour: str, symbol: str, size: int, dash: str | None = None
) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers" if dash is None else "lines+markers",
        "name": name,
        "x": [100 * t.metrics.get(axis, 0.0) for t in trials],
        "y": [100 * accuracy(t) for t in trials],
        "text": [_hover(t) for t in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "symbol": symbol, "size": size},
        "line": {"color": colour, "dash": dash or "solid", "width": 2},
    }


def _test_points(trials: Sequence[TrialRecord], axis: str) -> Figure:
    made = _points(trials, axis, "front, test accuracy", "@blue", "diamond-open", 9)
    return made | {"y": [100 * accuracy_on_test(t) for t in trials]}


def _base_point(base: Mapping[str, float]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "base model",
        "x": [100],
        "y": [100 * base["accuracy"]],
        "text": [f"base model<br>accuracy {percent(base['accuracy'])}"],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": "@green", "symbol": "star", "size": 15},
    }


def _failed_points(failed: Sequence[TrialRecord], front: Front) -> Figure:
    lowest = min(100 * r.metrics["accuracy"] for t in front.record.trials for r in t.rungs)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "failed",
        "x": [t.number for t in failed],
        "y": [lowest] * len(failed),
        "text": [f"trial {t.number} failed<br>{t.error_kind or ''}" for t in failed],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": "@red", "symbol": "x", "size": 9},
    }


def _hover(trial: TrialRecord) -> str:
    rungs = " > ".join(f"{100 * r.metrics['accuracy']:.1f}" for r in trial.rungs)
    lines = [
        name_of(trial) + ("" if trial.baseline is None else f" (trial {trial.number})"),
        f"target {trial.target_label}, {trial.state}",
        f"accuracy {percent(accuracy(trial))}",
        f"FLOPs {human(trial.metrics['flops'])} ({100 * flops_fraction(trial):.1f} %)",
        *_sparse_lines(trial.metrics),
        f"parameters {human(trial.metrics['params'])}",
        f"by rung {rungs}",
    ]
    return "<br>".join(lines)


def _sparse_lines(metrics: Mapping[str, float]) -> list[str]:
    if not metrics.get("sparsity"):
        return []
    share = 100 * metrics["sparse_flops_fraction"]
    return [f"{percent(metrics['sparsity'])} zeros, sparse FLOPs {human(metrics['sparse_flops'])} ({share:.1f} %)"]


def _counts(trial: TrialRecord) -> Mapping[str, int]:
    return trial.rungs[0].amounts.get("counts", {}) if trial.rungs else {}


def _units(trial: TrialRecord, group: str, size: int) -> int:
    """Kept units of a group; none where it went with a block that was skipped."""
    skipped = bool(trial.rungs and trial.rungs[0].amounts.get("skipped"))
    return int(_counts(trial).get(group, 0 if skipped else size))


def _kept(trial: TrialRecord, group: str, size: int) -> float:
    return 100 * _units(trial, group, size) / size


def _finished_heights(front: Front) -> list[float]:
    done = finished(front.record.trials)
    heights = [100 * accuracy(t) for t in done]
    heights += [100 * accuracy_on_test(t) for t in front.trials if t.test]
    return heights + ([100 * front.base["accuracy"]] if "accuracy" in front.base else [])


def _trial_range(front: Front) -> list[float]:
    # half a place on both sides, so that the first and the last marker are whole
    return [-0.5, max(t.number for t in front.record.trials) + 0.5]


def _range(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * _MARGIN
    return [low - room, high + room]
