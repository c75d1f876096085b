"""Markdown of what `search_trained.py` measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
_RANDOM, _WHOLE = "random search", "autoprune"
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
        found = _seed_by_seed(row for row in rows if row["search"] == name and row["seed"] in random)
        lines.append(f"| {name} | {len(found)} | {' | '.join(_cells(found, random))} |")
    lines += ["", "Test accuracy (per cent) of the best model by validation at each target, seed by seed:", ""]
    targets = first["targets"]
    lines += [f"| search | {' | '.join(f'{100 * t:.0f} % of the FLOPs' for t in targets)} |", "|---|---|---|"]
    for name in names:
        found = _seed_by_seed(row for row in rows if row["search"] == name)
        cells = [", ".join(_best(row["front"], target) for row in found) for target in targets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" + _parts(rows, random)


def _seed_by_seed(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["seed"])


def _parts(rows: Sequence[Row], random: dict[int, Any]) -> str:
    """Return a table of what every search without one part has more or less than autoprune, seed by seed."""
    whole = {row["seed"]: row for row in rows if row["search"] == _WHOLE}
    names = dict.fromkeys(row["search"] for row in rows if row["search"].startswith("without"))
    if not names:
        return ""
    shares = _SHARES[1:]
    lines = [
        "",
        "Difference to autoprune with the same seed, mean ± standard error; test accuracy in points:",
        "",
        f"| search | seeds | {' | '.join(f'{share:g} B' for share in shares)} | test "
        f"| test accuracy at {_targets(rows)} |",
        f"|---|---:|{'---:|' * (len(shares) + 2)}",
    ]
    for name in names:
        found = [row for row in rows if row["search"] == name and row["seed"] in whole and row["seed"] in random]
        if not found:
            continue
        pairs = [(row, whole[row["seed"]], random[row["seed"]][-1][0]) for row in found]
        cells = [
            _difference([at(row["curve"], share * b) - at(other["curve"], share * b) for row, other, b in pairs])
            for share in shares
        ]
        cells.append(_difference([row["test"] - other["test"] for row, other, _ in pairs]))
        told = [
            _difference([_accuracy(row["front"], t) - _accuracy(other["front"], t) for row, other, _ in pairs], 100)
            for t in rows[0]["targets"]
        ]
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} | {', '.join(told)} |")
    return "\n".join(lines) + "\n"


def _targets(rows: Sequence[Row]) -> str:
    return " and ".join(f"{100 * t:.0f} %" for t in rows[0]["targets"])


def _difference(values: Sequence[float], scale: float = 1.0) -> str:
    digits = 4 if scale == 1.0 else 1
    mean = f"{scale * _mean(values):+.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


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
    found = _accuracy(front, target)
    return "-" if math.isnan(found) else f"{100 * found:.1f}"


def _accuracy(front: Sequence[dict[str, float]], target: float) -> float:
    """Return the test accuracy of the best model by validation within a target, NaN without one."""
    fitting = [p for p in front if p["flops_fraction"] <= target + 1e-9]
    return max(fitting, key=lambda p: p["accuracy"])["test_accuracy"] if fitting else math.nan


def _hardware(row: Row) -> str:
    return f"One thread of {row['processor']}, torch {row['torch']}"


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"{_mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")
