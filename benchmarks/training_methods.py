r"""The training-time methods at equal training budgets: what each reaches, beside plain magnitude.

    python benchmarks/training_methods.py digits
    AUTOPRUNE_CIFAR10_JPEG=... AUTOPRUNE_RESNET20_WEIGHTS=... \
        python benchmarks/training_methods.py cifar10_jpeg_resnet20
    python benchmarks/training_methods.py --markdown docs/training_methods.md

Every arm trains on the same number of samples in all: what its method does not use goes into finetuning at the end. All
have the same optimiser, rate and batch size where a method leaves them open. `cut` arms meet half of the dense FLOPs,
`zero` arms zero 90 % of the single weights, `dynamic` arms are measured; the three are never compared with each other.
Each arm starts from the base model's weights and from new ones. Rows are appended to a file of JSON lines, and what is
there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from criteria import accuracy, bench_of
from training_methods_report import KEYS, Row, markdown

from autoprune import machine, threads
from autoprune.files import append_line, read_lines, write_text
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.trial import Bench, measure, metrics_of, prepare, train_compressed

SEEDS = (0, 1, 2)
STARTS = ("base", "fresh")
TARGET, SPARSITY = 0.5, 0.9


@dataclass(frozen=True)
class Budget:
    """Epochs of each arm in all, the same training for all of them, and steps of one epoch."""

    epochs: float
    batch_size: int
    lr: float
    steps: float = 0.0

    @property
    def training(self) -> dict[str, Any]:
        """Return the hyperparameters of a training."""
        return {"lr": self.lr, "batch_size": self.batch_size, "weight_decay": 5e-4}


BUDGETS = {
    "digits": Budget(10, 64, 0.05),
    "cifar10_jpeg_resnet20": Budget(2, 128, 0.02),
}
Arm = Callable[[Budget], dict[str, Any]]


def _cut(criterion: Any = "l1_norm", *, allocation: str = "uniform", **more: Any) -> Arm:
    return lambda budget: {"criterion": criterion, "normalisation": "none", "allocation": allocation, **more}


def _regularised(criterion: Any, allocation: str, regulariser: Callable[[Budget], dict[str, Any]]) -> Arm:
    return lambda budget: {
        "criterion": criterion,
        "normalisation": "none",
        "allocation": allocation,
        "regulariser": budget.training | regulariser(budget),
    }


def _of_lrpet(budget: Budget) -> dict[str, Any]:
    return {"epochs": budget.epochs, "interval": budget.epochs / 20}


def _low_rank(**method: Any) -> Arm:
    return lambda budget: {
        "criterion": None,
        "low_rank": method | (_of_lrpet(budget) if method["name"] == "lrpet" else {}),
    }


def _zero(method: Callable[[Budget], dict[str, Any]]) -> Arm:
    return lambda budget: {
        "criterion": None,
        "target": {"flops_fraction": 1.0},
        "sparsity": {"sparsity": SPARSITY} | method(budget),
    }


def _growing(budget: Budget, name: str) -> dict[str, Any]:
    """Return a penalty that grows over a quarter of the budget and settles over another."""
    every = 5
    updates = max(4, int(budget.steps * budget.epochs / 4 / every))
    settings = {"name": name, "every": every, "growth": 1 / updates, "stabilise": updates * every, "lr": budget.lr / 5}
    return settings | ({"pick_growth": 0.01 / max(1, updates // 4)} if name == "greg_2" else {})


def _flat(budget: Budget, mu_rel: float) -> dict[str, Any]:
    events = {"event_every": budget.epochs / 16}
    return {"name": "spectral_radius", "epochs": 0.75 * budget.epochs, "mu_rel": mu_rel, **events}


ARMS: dict[str, dict[str, Arm]] = {
    "cut": {
        "magnitude": _cut(),
        "magnitude, gradual": _regularised("l1_norm", "uniform", lambda b: _flat(b, 0.0)),
        "network_slimming": _regularised(
            "bn_scale", "global", lambda b: {"name": "network_slimming", "epochs": b.epochs / 2, "strength": 1e-3}
        ),
        "greg_1": _regularised("l1_norm", "uniform", lambda b: _growing(b, "greg_1")),
        "greg_2": _regularised("l1_norm", "uniform", lambda b: _growing(b, "greg_2")),
        "spectral_radius": _regularised("flatness", "global", lambda b: _flat(b, 10.0)),
        "spectral_radius, mu = 3": _regularised("flatness", "global", lambda b: _flat(b, 3.0)),
        "spectral_radius, mu = alpha = 0": _regularised(
            {"name": "flatness", "alpha": 0.0}, "global", lambda b: _flat(b, 0.0)
        ),
        "svd": _low_rank(name="svd", scheme="channel"),
        "lrpet": _low_rank(name="lrpet"),
        "lrpet, no transfer": _low_rank(name="lrpet", transfer=False),
    },
    "zero": {
        "magnitude": _zero(lambda b: {"name": "magnitude"}),
        "magnitude, gradual": _zero(
            lambda b: {"name": "weightmom", "epochs": 0.75 * b.epochs, "beta": 0.0, "gamma": 1.0}
        ),
        "han_2015": _zero(lambda b: {"name": "han_2015", "rounds": 4, "epochs_between": b.epochs / 6}),
        "snip": _zero(lambda b: {"name": "snip", "batches": 4}),
        "scl": _zero(
            lambda b: {"name": "scl", "epochs": 0.7 * b.epochs, "price": 0.2, "mask_lr": 8 / (b.steps * b.epochs)}
        ),
        "nn_relief": _zero(lambda b: {"name": "nn_relief", "rounds": 4, "epochs_between": b.epochs / 6}),
        "rigl": _zero(lambda b: {"name": "rigl", "interval": max(2, int(b.steps * b.epochs / 40))}),
        "drive": _zero(lambda b: {"name": "drive", "warmup_epochs": b.epochs / 12, "rounds": 10, "batches": 4}),
        "weightmom": _zero(lambda b: {"name": "weightmom", "epochs": 0.75 * b.epochs, "beta": 0.9}),
        "grow_and_prune": _zero(
            lambda b: {"name": "grow_and_prune", "partitions": 4, "rounds": 1, "epochs": b.epochs / 6}
        ),
    },
    "dynamic": {
        f"haste, {planes} planes": lambda b, planes=planes: {
            "criterion": None,
            "target": {"flops_fraction": 1.0},
            "replacement": {"name": "haste", "planes": planes},
        }
        for planes in (14, 8)
    },
}


def recipe_of(kind: str, arm: str, start: str, budget: Budget) -> Recipe:
    """Return the recipe of one arm."""
    plain = {"target": {"flops_fraction": TARGET}, "start": start} | ARMS[kind][arm](budget)
    return Recipe.parse(plain | {"recovery": ["bn_reestimation", {"name": "finetune"} | budget.training]})


def trial(recipe: Recipe, bench: Bench, budget: Budget, seed: int) -> Row:
    """Compress, spend what is left of the budget on finetuning, and return what came of it."""
    began, allowed = time.process_time(), round(budget.epochs * len(bench.data.train))
    prepared = prepare(recipe, bench, seed)
    before = accuracy(prepared.compressed.model, bench)
    left = max(0, allowed - prepared.cost.trained_samples)
    compressed, spent = train_compressed(
        prepared.compressed, recipe, bench, derive_seed(seed, "train"), left / len(bench.data.train)
    )
    found = metrics_of(measure(compressed.model, bench))
    names = ("flops_fraction", "sparse_flops_fraction", "dynamic_flops_fraction", "sparsity")
    return {
        "before": before,
        "after": accuracy(compressed.model, bench),
        "trained_samples": prepared.cost.trained_samples + spent.trained_samples,
        "in_method": prepared.cost.trained_samples / max(1, allowed),
        "seconds": time.process_time() - began,
        "notes": list(prepared.notes),
        **{name: found[name] for name in names},
    }


def run(study: str, only: str, seeds: int, starts: Sequence[str], budget: Budget, out: Path) -> None:
    """Measure what is not in the file yet."""
    bench = bench_of(study)
    budget = Budget(budget.epochs, budget.batch_size, budget.lr, len(bench.data.train) / budget.batch_size)
    done = {tuple(row.get(key) for key in KEYS) for row in read_rows(out)}
    about = machine.describe() | {"torch": torch.__version__, "accuracy": accuracy(bench.model, bench)}
    about |= {"train_images": len(bench.data.train), "test_images": min(2000, len(bench.data.test or ()))}
    about |= {"epochs": budget.epochs, "lr": budget.lr, "batch_size": budget.batch_size}
    append_line(out, {"kind": "base", "study": study} | about)
    for seed in SEEDS[:seeds]:
        for kind, arms in ARMS.items():
            for arm in arms:
                for start in (s for s in starts if s == "base" or kind != "dynamic"):
                    row: Row = {"kind": kind, "study": study, "arm": arm, "start": start, "seed": seed}
                    if tuple(row.get(key) for key in KEYS) in done or not fnmatch(arm, only):
                        continue
                    row |= trial(recipe_of(kind, arm, start, budget), bench, budget, seed)
                    append_line(out, row)
                    print(json.dumps({k: v for k, v in row.items() if k != "notes"}), flush=True)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, of equal ones the newest."""
    rows = read_lines(path) if path.exists() else []
    return list({tuple(row.get(key) for key in KEYS): row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", nargs="?", choices=sorted(BUDGETS), help="which study's base model and data")
    parser.add_argument("--only", default="*", help="glob of arms")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds 0, 1, 2")
    parser.add_argument("--start", action="append", choices=STARTS, help="only from these weights")
    parser.add_argument("--epochs", type=float, default=math.nan, help="training budget of every arm")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("training_methods.jsonl"))
    parser.add_argument("--markdown", type=Path, help="write the tables of the file to this page")
    options = parser.parse_args()
    if options.study:
        budget = BUDGETS[options.study]
        if not math.isnan(options.epochs):
            budget = Budget(options.epochs, budget.batch_size, budget.lr)
        with threads.limited(1):
            run(options.study, options.only, options.seeds, options.start or STARTS, budget, options.out)
    if options.markdown:
        write_text(options.markdown, markdown(read_rows(options.out)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
