"""How good a front is for how much compute, search by search, on a replayed table of outcomes.

    python benchmarks/search.py [--seeds 3] [--trials 60] [--out docs/search_replay.jsonl]

Every search runs on `benchmarks/tables/digits.jsonl.gz`; no network is trained. Cost counts forward+backward samples: a
trained sample is one, a forward sample a third. Quality is the hypervolume of validation accuracy over FLOPs fractions
from 0.2 to 1, against accuracy 0. Recipes that the table does not hold are interpolated, with the error printed:
this compares samplers and stoppers with each other, and says nothing about real networks.

Prints a markdown table; --out appends one line of JSON for every search and seed: (cost, hypervolume) after each trial.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from autoprune.files import append_line
from autoprune.graph import Structure
from autoprune.report.quality import accuracy, finished, flops_fraction, hypervolume
from autoprune.search.space import load_space
from autoprune.study.config import load
from autoprune.study.controller import Controller
from autoprune.study.executors.replay import Replay
from autoprune.study.records import StudyRecord, record_of
from autoprune.study.replay import ReplayWorker, Table

TABLE = Path(__file__).parent / "tables" / "digits.jsonl.gz"
_NEVER = 1.000001
"""A reduction that promotes every trial."""

_TARGETS = [0.7, 0.5, 0.35, 0.25, 0.2]
_SWEEP = "uniform L1 sweep, no search"

SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "autoprune (TPE, rungs)": {},
    "without noise-aware rungs": {"rungs.noise": 0.0},
    "without rungs: TPE": {"rungs.reduction": _NEVER},
    "without rungs: NSGA-II": {"rungs.reduction": _NEVER, "sampler.name": "nsga2"},
    "without rungs: random": {"rungs.reduction": _NEVER, "sampler.name": "random"},
    "random, with rungs": {"sampler.name": "random"},
    "NSGA-II, with rungs": {"sampler.name": "nsga2"},
    # the baselines alone: one recipe at each target, trained to the top rung
    _SWEEP: {"budget.trials": len(_TARGETS)},
}


def run(worker: ReplayWorker, table: Table, changes: Mapping[str, Any], seed: int, trials: int) -> StudyRecord:
    """Return the record of one search."""
    replayed = {"executor.name": "replay", "executor.table": str(TABLE), "executor.workers": 2}
    fixed = {
        "targets": _TARGETS,
        "baselines": ["uniform_l1"],
        "budget.trials": trials,
        "seed": seed,
        "rungs.reduction": 3.0,
    }
    space = {"search_space": table.config.search_space}
    config = load("digits", {**replayed, **fixed, **space, **changes}).config
    storage, executor = optuna.storages.InMemoryStorage(), Replay(workers=2)
    items = Structure.from_json(table.structure)
    controller = Controller(config, load_space(config.search_space), items, storage, clock=executor.clock)
    executor.run(controller, lambda: worker, Path())
    return record_of(storage, config, Path())


def curve(record: StudyRecord) -> list[tuple[float, float]]:
    """Return (cost, hypervolume) after every trial, in the order in which trials ended."""
    ended = sorted((t for t in record.trials if t.rungs), key=lambda t: t.rungs[-1].at)
    cost, points, found = 0.0, list[tuple[float, float]](), list[tuple[float, float]]()
    for trial in ended:
        cost += trial.cost.get("trained_samples", 0.0) + trial.cost.get("forward_samples", 0.0) / 3
        points += [(accuracy(t), max(0.2, flops_fraction(t))) for t in finished([trial])]
        found.append((cost, hypervolume(points, (0.0, 1.0))))
    return found


def at(curve_: Sequence[tuple[float, float]], cost: float) -> float:
    """Return the hypervolume that was reached within a cost."""
    return max((h for c, h in curve_ if c <= cost), default=0.0)


def reached(curve_: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """Return the cost at which a hypervolume was reached, None when it was not."""
    return next((c for c, h in curve_ if h >= wanted), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table.read(TABLE)
    worker = ReplayWorker(table)
    print(worker.stated)
    curves = {
        name: [curve(run(worker, table, changes, seed, chosen.trials)) for seed in range(chosen.seeds)]
        for name, changes in SEARCHES.items()
    }
    if chosen.out is not None:
        for name, found in curves.items():
            for seed, one in enumerate(found):
                append_line(chosen.out, {"search": name, "seed": seed, "trials": chosen.trials, "curve": one})
    least = min(one[-1][0] for name, found in curves.items() if name != _SWEEP for one in found)
    print(f"\n| search | hypervolume at equal cost ({least:.0f} samples) | at the end | cost at the end |")
    print("|---|---|---|---|")
    for name, found in curves.items():
        equal, last = [at(one, least) for one in found], [one[-1][1] for one in found]
        cost = statistics.mean(one[-1][0] for one in found)
        shown = (f"{statistics.mean(v):.4f} ± {statistics.stdev(v) if len(v) > 1 else 0:.4f}" for v in (equal, last))
        print(f"| {name} | {' | '.join(shown)} | {cost:.0f} |")
    rows = [at(one, least) for one in curves["without rungs: random"]]
    costs = [reached(one, statistics.mean(rows)) for one in curves["autoprune (TPE, rungs)"]]
    told = ", ".join("never" if c is None else f"{c:.0f}" for c in costs)
    print(f"\nautoprune reached what random search without rungs had after {least:.0f} samples after: {told}")


if __name__ == "__main__":
    main()
