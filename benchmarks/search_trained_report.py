"""Markdown of what `search_trained.py` measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_RANDOM = "random search"
_SHARES = (0.1, 0.25, 0.5, 1.0)


def markdown(rows: Sequence[Row]) -> str:
    """Return the page."""
    parts = [_HEAD]
    for study in sorted({row["study"] for row in rows}):
        parts.append(_study(study, [row for row in rows if row["study"] == study]))
    return "\n".join(parts)


_HEAD = """# Searches compared by training

Written by `python benchmarks/search_trained.py --markdown docs/search_trained.md` from
`benchmarks/search_trained.jsonl`; the script's first lines say what is compared. *B* is what random search spent;
*0.1 B* is the hypervolume of validation accuracy that a search had reached when it had spent a tenth of that, and so
on. *until random's end*: the part of B after which a search had the hypervolume that random search with the same seed
ended with. *test*: hypervolume of the front's test accuracies at the end. Mean ± standard deviation over seeds.
Searches called "without ..." are autoprune without one of its parts. `plain_cifar10` is a network that nothing was
tuned on.
"""


def _study(study: str, rows: Sequence[Row]) -> str:
    random = {row["seed"]: row["curve"] for row in rows if row["search"] == _RANDOM}
    if not random:
        return f"## {study}\n\n(random search has not run)\n"
    tested = {name: _mean([r["test"] for r in rows if r["search"] == name]) for name in {r["search"] for r in rows}}
    names = sorted(tested, key=lambda name: -tested[name])
    spent = [curve[-1][0] for curve in random.values()]
    first = rows[0]
    lines = [
        f"## {study}",
        "",
        f"B = {statistics.mean(spent):,.0f} samples forward and backward. {_hardware(first)}.",
        "",
        f"| search | seeds | {' | '.join(f'{share:g} B' for share in _SHARES)} | at its end | spent, of B "
        "| until random's end | test | trials, trained to the end |",
        f"|---|---:|{'---:|' * (len(_SHARES) + 5)}",
    ]
    for name in names:
        found = [row for row in rows if row["search"] == name and row["seed"] in random]
        lines.append(f"| {name} | {len(found)} | {' | '.join(_cells(found, random))} |")
    lines += ["", "Test accuracy (per cent) of the best model by validation at each target, seed by seed:", ""]
    targets = first["targets"]
    lines += [f"| search | {' | '.join(f'{100 * t:.0f} % of the FLOPs' for t in targets)} |", "|---|---|---|"]
    for name in names:
        found = sorted((row for row in rows if row["search"] == name), key=lambda row: row["seed"])
        cells = [", ".join(_best(row["front"], target) for row in found) for target in targets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(found: Sequence[Row], random: dict[int, Any]) -> list[str]:
    budgets = {seed: curve[-1][0] for seed, curve in random.items()}
    reached = [_reached(row["curve"], random[row["seed"]][-1][1]) for row in found]
    told = ["never" if c is None else f"{c / budgets[r['seed']]:.2f}" for c, r in zip(reached, found, strict=True)]
    return [
        *(_spread([at(row["curve"], share * budgets[row["seed"]]) for row in found]) for share in _SHARES),
        _spread([row["curve"][-1][1] for row in found]),
        f"{_mean([row['curve'][-1][0] / budgets[row['seed']] for row in found]):.2f}",
        ", ".join(told),
        _spread([row["test"] for row in found]),
        f"{_mean([row['trials'] for row in found]):.0f}, {_mean([row['finished'] for row in found]):.0f}",
    ]


def at(curve: Sequence[Sequence[float]], cost: float) -> float:
    """Return the hypervolume that was reached within a cost."""
    return max((h for c, h in curve if c <= cost), default=0.0)


def _reached(curve: Sequence[Sequence[float]], wanted: float) -> float | None:
    return next((c for c, h in curve if h >= wanted), None)


def _best(front: Sequence[dict[str, float]], target: float) -> str:
    fitting = [p for p in front if p["flops_fraction"] <= target + 1e-9]
    return f"{100 * max(fitting, key=lambda p: p['accuracy'])['test_accuracy']:.1f}" if fitting else "-"


def _hardware(row: Row) -> str:
    return f"One thread of {row['processor']}, torch {row['torch']}"


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"{_mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")
