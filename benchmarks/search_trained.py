"""Fronts found by training: autoprune beside plain Optuna, random search, and sweeps by L1 norm and by Torch-Pruning.

    AUTOPRUNE_CIFAR10_JPEG=... AUTOPRUNE_RESNET20_WEIGHTS=... \
        python benchmarks/search_trained.py cifar10_jpeg_resnet20 --runs DIR
    python benchmarks/search_trained.py digits --seeds 6 --runs DIR
    python benchmarks/search_trained.py --markdown docs/search_trained.md

All searches have the same model, data, split, search space (`low_rank` without recipes of ranks alone, but where a
search is named after that), targets, final training and validation images.
Cost counts samples that went forward and backward, in the search and before it: a forward sample is a third of one.
Left out for all alike is one forward pass of 1,024 samples for what layers read.
Quality is the hypervolume of accuracy over FLOPs fractions from 0.2 (digits: 0.1) to 1, against accuracy 0: of
validation after every trial, and of the test accuracies of the front at the end. Torch-Pruning takes part where it is
installed. Rows are appended to a file of JSON lines, and what is there already is not run again; a search that was cut
off goes on in its run folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import search_trained_parts as parts
import torch
from search_trained_report import Row, markdown

from autoprune import machine, threads
from autoprune.files import append_line, read_lines, write_text
from autoprune.report.quality import accuracy, accuracy_on_test, finished, flops_fraction, hypervolume, non_dominated
from autoprune.search.stopper import dominates
from autoprune.study.config import StudyConfig, load
from autoprune.study.launch import launch
from autoprune.study.records import StudyRecord

_NEVER = 1.000001
"""A reduction that promotes every trial."""


@dataclass(frozen=True)
class Setting:
    """How much each trial of a study trains, and how many trials there are.

    epochs: of a trial that is trained to the end; rung: of autoprune's rung before that. judged: validation images at
    autoprune's lower rungs; None is all. plain and rungs: trials of a search without and with rungs. rates: learning
    rates of the sweeps. targets: of FLOPs. least: FLOPs fraction from which on hypervolumes are counted. file: of the
    study, where its name is not enough.
    """

    epochs: float
    rung: float
    judged: int | None
    plain: int
    rungs: int
    rates: tuple[float, ...]
    targets: tuple[float, ...]
    least: float
    file: str | None = None


_RATES = (0.01, 0.02, 0.05)
_CIFAR = Setting(epochs=0.1, rung=0.03, judged=1500, plain=20, rungs=40, rates=_RATES, targets=(0.5, 0.3), least=0.2)
SETTINGS = {
    "cifar10_jpeg_resnet20": _CIFAR,
    "plain_cifar10": dataclasses.replace(_CIFAR, file=str(Path(__file__).with_name("plain_cifar10.yaml"))),
    # at half of its FLOPs this network loses nothing that its few test images could show
    "digits": Setting(
        epochs=1.0, rung=0.25, judged=None, plain=24, rungs=48, rates=_RATES, targets=(0.25, 0.12), least=0.1
    ),
}


def _l1(setting: Setting) -> list[dict[str, Any]]:
    """Return the recipes of a sweep: uniform L1 norm, finetuned at each of the rates."""
    plain = {"criterion": "l1_norm", "normalisation": "mean", "allocation": "uniform"}
    recoveries = [["bn_reestimation", {"name": "finetune", "lr": lr}] for lr in setting.rates]
    return [
        {**plain, "recovery": recovery, "target": {"flops_fraction": target}}
        for recovery in recoveries
        for target in setting.targets
    ]


def searches(setting: Setting) -> dict[str, dict[str, Any]]:
    """Return what each search changes of the study."""
    rungs = {
        "rungs": {
            "epochs": [0, setting.rung, setting.epochs],
            "reduction": 3.0,
            "validation_samples": [setting.judged, setting.judged, None],
        },
        "budget": {"trials": setting.rungs},
    }
    # the rung that cannot be left out is judged on next to nothing, and promotes all
    plain = {
        "rungs": {"epochs": [0, setting.epochs], "reduction": _NEVER, "validation_samples": [8, None]},
        "budget": {"trials": setting.plain},
    }
    unaided = plain | {"baselines": [], "warm_start": []}
    sweep = _l1(setting)
    return {
        "autoprune": rungs,
        "Optuna's TPE": unaided,
        "Optuna's NSGA-II": unaided | {"sampler": {"name": "nsga2"}},
        "random search": unaided | {"sampler": {"name": "random"}},
        "uniform L1 sweep": unaided | {"warm_start": sweep, "budget": {"trials": len(sweep)}},
        **parts.searches(rungs, plain, setting.targets),
    }


def config_of(study: str, changes: Mapping[str, Any], seed: int) -> StudyConfig:
    """Return the study of one search."""
    fixed = {
        "targets": list(SETTINGS[study].targets),
        "search_space": parts.both_kinds(),
        "sampler": {"name": "tpe"},
        "baselines": ["uniform_l1", "global_taylor"],
        "warm_start": parts.STARTS,
        "executor": {"name": "inline"},
        "seed": seed,
    }
    return load(SETTINGS[study].file or study, {**fixed, **changes}).config


def curve(record: StudyRecord, evidence: float, least: float) -> list[tuple[float, float]]:
    """Return (cost, hypervolume of validation) after every trial, in the order in which they ended."""
    cost, points, found = evidence, list[tuple[float, float]](), list[tuple[float, float]]()
    for trial in sorted((t for t in record.trials if t.rungs), key=lambda t: t.rungs[-1].at):
        cost += trial.cost.get("trained_samples", 0.0) + trial.cost.get("forward_samples", 0.0) / 3
        points += [(accuracy(t), max(least, flops_fraction(t))) for t in finished([trial])]
        found.append((cost, hypervolume(points, (0.0, 1.0))))
    return found


def searched(study: str, search: str, changes: Mapping[str, Any], seed: int, folder: Path) -> Row:
    """Run one search, or go on with it, and return its row."""
    config, least = config_of(study, changes, seed), SETTINGS[study].least
    with parts.as_named(search):
        record = launch(config, run_dir=folder)
    done = finished(record.trials)
    front = non_dominated(done, config.objectives)
    samples = config.trial.evidence_batches * config.trial.evidence_batch_size
    return {
        # gradients of the base model, once
        "curve": curve(record, float(samples), least),
        "test": hypervolume([(accuracy_on_test(t), max(least, flops_fraction(t))) for t in front], (0.0, 1.0)),
        "front": [_point(accuracy(t), accuracy_on_test(t), flops_fraction(t)) for t in front],
        "trials": len(record.trials),
        "finished": len(done),
        "failed": sum(t.state == "failed" for t in record.trials),
    }


def _point(validation: float, test: float, flops: float) -> dict[str, float]:
    return {"accuracy": validation, "test_accuracy": test, "flops_fraction": flops}


def swept(study: str, setting: Setting, seed: int) -> Row:
    """Cut by Torch-Pruning's global pruner to each target with each importance and rate, train as the others do."""
    from search_trained_torch_pruning import Sweep

    sweep = Sweep(config_of(study, {}, seed), setting.epochs, seed)
    cost, points, found = 0.0, list[tuple[float, float]](), list[tuple[float, float]]()
    models = []
    for target, importance, lr in itertools.product(setting.targets, ("magnitude", "taylor"), setting.rates):
        one = sweep.trial(target, importance, lr)
        cost += one.samples
        points.append((one.accuracy, max(setting.least, one.flops_fraction)))
        found.append((cost, hypervolume(points, (0.0, 1.0))))
        models.append(one)
    costs = [(-m.accuracy, m.flops_fraction) for m in models]
    front = [m for m, mine in zip(models, costs, strict=True) if not any(dominates(other, mine) for other in costs)]
    tested = [_point(m.accuracy, sweep.test_accuracy(m.model), m.flops_fraction) for m in front]
    return {
        "curve": found,
        "test": hypervolume(
            [(p["test_accuracy"], max(setting.least, p["flops_fraction"])) for p in tested], (0.0, 1.0)
        ),
        "front": tested,
        "trials": len(models),
        "finished": len(models),
        "failed": 0,
    }


def rows_of(study: str, only: str, seeds: int, runs: Path, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    """Yield a row for every search and seed that is not there yet, seed after seed."""
    setting = SETTINGS[study]
    for seed in range(seeds):
        for name, changes in searches(setting).items():
            if (study, name, seed) not in done and fnmatch(name, only):
                folder = runs / study / f"{name.replace(' ', '_')}-{seed}"
                yield {"study": study, "search": name, "seed": seed} | searched(study, name, changes, seed, folder)
        name = "Torch-Pruning global sweep"
        if (study, name, seed) not in done and fnmatch(name, only):
            yield {"study": study, "search": name, "seed": seed} | swept(study, setting, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", nargs="?", choices=sorted(SETTINGS))
    parser.add_argument("--only", default="*", help="glob of searches")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_trained"), help="folder of the run folders")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("search_trained.jsonl"))
    parser.add_argument("--markdown", type=Path, help="write the tables of the file to this page")
    chosen = parser.parse_args()
    if chosen.study:
        there = read_lines(chosen.out) if chosen.out.exists() else []
        done = {(row["study"], row["search"], row["seed"]) for row in there}
        with threads.limited(1):
            for row in rows_of(chosen.study, chosen.only, chosen.seeds, chosen.runs, done):
                row["targets"] = SETTINGS[chosen.study].targets
                append_line(chosen.out, row | machine.describe() | {"torch": torch.__version__})
                print(row["study"], row["search"], row["seed"], row["curve"][-1], f"test {row['test']:.4f}", flush=True)
    if chosen.markdown:
        write_text(chosen.markdown, markdown(read_lines(chosen.out)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
