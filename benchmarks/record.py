"""Record a table of outcomes: random recipes on digits, every one of them up to the top rung.

    python benchmarks/record.py [--trials 400] [--run runs/digits_table] [--out benchmarks/tables/digits.jsonl.gz]

The study of the run folder is resumed where it stopped; the table is written when all its trials are there. The shipped
table took 23 minutes of one AMD EPYC core (400 recipes, about 3.4 s each).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from autoprune.study.launch import launch
from autoprune.study.replay import Table
from autoprune.study.run_folder import RunFolder

STUDY = {
    "name": "digits_table",
    "model": {"name": "digits_resnet"},
    "train_base": {"epochs": 12},
    "data": {"name": "digits", "validation_fraction": 0.25},
    "targets": [0.7, 0.5, 0.35, 0.25, 0.2],
    "search_space": "channels",
    "sampler": {"name": "random"},
    # of n trials ceil(n / reduction) go up: all of them
    "rungs": {"epochs": [0, 0.25, 1], "reduction": 1.000001},
    "executor": {"name": "inline"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--run", type=Path, default=Path("runs/digits_table"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tables" / "digits.jsonl.gz")
    chosen = parser.parse_args()
    launch(STUDY | {"budget": {"trials": chosen.trials}}, run_dir=chosen.run)
    table = Table.of_run(RunFolder(chosen.run))
    table.write(chosen.out)
    print(f"{len(table.measured)} recipes in {chosen.out}")


if __name__ == "__main__":
    main()
