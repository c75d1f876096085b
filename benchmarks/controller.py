"""What the controller itself costs: asking, recording and telling a trial, and reading a large study.

    python benchmarks/controller.py [--trials 1000] [--large 10000]

No model is trained: every job is answered at once. The study is in SQLite in a temporary folder, TPE draws 59 numbers
a trial (57 per-group amounts, a criterion, a learning rate) after `--trials` recorded ones. Times are of the process's
own CPU, the median of 20 trials; status, front and report are timed on a study of `--large` trials,
copies of 250.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna

from autoprune import machine
from autoprune.report.front import Front
from autoprune.report.html import render
from autoprune.report.quality import hypervolume_over
from autoprune.report.tables import best_plain
from autoprune.search.space import load_space
from autoprune.study.config import StudyConfig, load
from autoprune.study.controller import Controller
from autoprune.study.jobs import Job, JobResult, run_job
from autoprune.study.records import opened, read_study
from autoprune.study.testing import FakeWorker, fake_structure

_GROUPS, _TIMED, _FILLED = 57, 20, 250
_TABLES = {
    "trial_params": "param_name, param_value, distribution_json",
    "trial_user_attributes": "key, value_json",
    "trial_values": "objective, value, value_type",
}
_COUNTS = {f"group{i}": 16 for i in range(_GROUPS)}
_SPACE = {
    "criterion": {"choose": ["l1_norm", "bn_scale", "taylor_2019"]},
    "allocation": {"name": "per_group", "keep_fraction": "search"},
    "recovery": ["bn_reestimation", {"name": "finetune", "lr": "search"}],
}


class Answers:
    """Answers at once, with everything that a report shows."""

    def run(self, job: Job) -> JobResult:
        """Answer a job."""
        found = FakeWorker().run(job)
        more = {"count": 1000.0, "flops": 1e9 * found.metrics["flops_fraction"], "params": 1e6}
        return JobResult(metrics={**found.metrics, **more}, cost={"seconds": 1.0}, amounts={"counts": _COUNTS})


def study(trials: int, sampler: str) -> StudyConfig:
    """Return a study of three targets with 59 dimensions."""
    plain = {
        "name": "controller",
        "model": {"name": "lenet"},
        "data": {"name": "digits"},
        "targets": [0.5, 0.35, 0.25],
        "search_space": _SPACE,
        "sampler": {"name": sampler},
        "budget": {"trials": trials},
        "executor": {"name": "inline"},
    }
    return load(plain).config


def open_controller(config: StudyConfig, storage: object) -> Controller:
    """Return the controller of a study, which goes on with what the storage holds."""
    items = fake_structure(list(_COUNTS))
    return Controller(config, load_space(config.search_space), items, storage)  # type: ignore[arg-type]


def drive(controller: Controller) -> list[float]:
    """Run a study to its end and return the CPU seconds of every trial, from its draw to the next one's."""
    begins, worker = [], Answers()
    begun = time.process_time()
    while isinstance(job := controller.next_job(), Job):
        if job.rung == 0:
            begins.append(begun)
        controller.tell(job, run_job(worker, job))
        begun = time.process_time()
    return [after - before for before, after in zip(begins, [*begins[1:], begun], strict=True)]


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def per_trial(recorded: int) -> float:
    """Return the median CPU seconds of one trial, rungs included, when so many are recorded."""
    with tempfile.TemporaryDirectory() as folder:
        config = study(recorded, "random")
        with opened(config, Path(folder)) as storage:
            drive(open_controller(config, storage))
            more = study(recorded + _TIMED, "tpe")
            return statistics.median(drive(open_controller(more, storage)))


def reading(trials: int) -> dict[str, float]:
    """Return the CPU seconds of reading a large study, of its front and status, and of its report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = study(_FILLED, "random")
        with opened(config, folder) as storage:
            drive(open_controller(config, storage))
        _multiply(folder / "study.db", trials // _FILLED)
        read = seconds(lambda: read_study(config, folder))
        front = Front.of(read_study(config, folder))
        shown = seconds(lambda: (front.plain(), hypervolume_over(front.record.trials), best_plain(front)))
        report = seconds(lambda: render(front))
        return {"read": read, "front and status": read + shown, "report": read + report}


def _multiply(database: Path, times: int) -> None:
    """Copy the trials of a study under further numbers: running ten thousand would take minutes."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for copy in range(1, times):
            shift = copy * _FILLED
            connection.execute(
                f"INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) "
                f"SELECT trial_id + {shift}, number + {shift}, study_id, state, datetime_start, datetime_complete "
                f"FROM trials WHERE trial_id <= {_FILLED}"
            )
            for table, columns in _TABLES.items():
                connection.execute(
                    f"INSERT INTO {table} (trial_id, {columns}) SELECT trial_id + {shift}, {columns} "
                    f"FROM {table} WHERE trial_id <= {_FILLED}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--large", type=int, default=10_000)
    chosen = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(", ".join(f"{k}: {v}" for k, v in machine.describe().items()), f"| optuna {optuna.__version__}")
    print(f"ask, record and tell at {chosen.trials} trials: {1000 * per_trial(chosen.trials):.0f} ms of CPU")
    found = reading(chosen.large)
    print(f"{chosen.large} trials: " + ", ".join(f"{name} {value:.1f} s" for name, value in found.items()))


if __name__ == "__main__":
    main()
