"""What a trial costs besides the model's own forward passes, and how fast the command line starts.

    python benchmarks/overhead.py [--trials 12]

Rung 0 of ResNet-20 on random 32x32 images through the local executor: the share of each job's time, from being handed
to a worker until its result is recorded, that is not spent in calibration or validation passes. The data are random:
only time is measured. One worker with one thread, so that nothing competes inside the run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from autoprune import machine
from autoprune.study import events
from autoprune.study.launch import launch

STUDY = {
    "name": "overhead",
    "model": {"name": "resnet20_cifar", "arguments": {"num_classes": 10}},
    "train_base": {"epochs": 0.05},
    "data": {"name": "overhead:images"},
    "targets": [0.5, 0.3],
    "baselines": ["uniform_l1"],
    # one-shot recipes with cheap scores: what trains between cuts or gathers evidence is work, not overhead
    "search_space": {
        "criterion": {"choose": ["l1_norm", "bn_scale"]},
        "allocation": {"choose": ["uniform", "global"]},
        "recovery": [{"name": "bn_reestimation", "samples": {"low": 512, "high": 2048}}, "finetune"],
    },
    "rungs": {"epochs": [0]},
    "executor": {"name": "local", "workers": 1, "threads": 1},
}


def images() -> Mapping[str, TensorDataset]:
    """Return 4,000 training and 2,000 validation images of noise."""
    draws = torch.Generator().manual_seed(0)

    def split(count: int) -> TensorDataset:
        return TensorDataset(torch.randn(count, 3, 32, 32, generator=draws), torch.arange(count) % 10)

    return {"train": split(4000), "validation": split(2000)}


def rung_zero_overhead(trials: int) -> list[float]:
    """Return the share of every rung-0 job's time that was not spent in forward passes."""
    begun: dict[int, float] = {}
    shares: list[float] = []
    costs: dict[int, float] = {}

    def listen(event: events.Event) -> None:
        if isinstance(event, events.JobStarted):
            begun[event.trial] = time.perf_counter()
        elif isinstance(event, events.RungDone):
            costs[event.trial] = time.perf_counter() - begun[event.trial]

    with tempfile.TemporaryDirectory() as folder:
        record = launch(STUDY | {"budget": {"trials": trials}}, run_dir=folder, listen=listen)
        for trial in record.trials:
            forward = trial.rungs[0].cost["forward_seconds"]
            shares.append(1 - forward / costs[trial.number])
    return shares


def start_seconds(*arguments: str, repeats: int = 5) -> float:
    """Return the median wall time of one command line."""

    def once() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "autoprune", *arguments], check=True, capture_output=True)
        return time.perf_counter() - begin

    return statistics.median(once() for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=12)
    trials = parser.parse_args().trials
    # the first job of a worker also warms the allocator and torch's kernels
    shares: list[Any] = sorted(rung_zero_overhead(trials)[1:])
    print(", ".join(f"{k}: {v}" for k, v in machine.describe().items()), f"| torch {torch.__version__}")
    print(f"rung-0 overhead, n={len(shares)}: median {statistics.median(shares):.1%}, worst {shares[-1]:.1%}")
    print(f"autoprune --help, median of 5: {start_seconds('--help'):.2f} s")
    print(f"autoprune check digits, median of 3: {start_seconds('check', 'digits', repeats=3):.1f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
