"""Hand-worked fronts and choices. The example study is in conftest."""

from __future__ import annotations

import dataclasses
import math

from autoprune.report import figures
from autoprune.report.front import Front, plain_trial
from autoprune.report.quality import axis_of
from autoprune.report.selection import Selector
from autoprune.study.records import StudyRecord, TrialRecord

from .conftest import trial

OBJECTIVES = ("accuracy", "flops")


def numbers(trials: tuple[TrialRecord, ...]) -> list[int]:
    return [t.number for t in trials]


def test_front_object(record: StudyRecord) -> None:
    found = Front.of(record)
    assert numbers(tuple(found)) == [2, 7, 4]
    assert len(found) == 3
    assert numbers(found.baselines) == [0, 1]
    best = found.best_of("flops=0.25")
    assert best is not None
    assert best.number == 4
    assert found.best_of("flops=0.1") is None


def test_plain_data(record: StudyRecord) -> None:
    plain = Front.of(record).plain()
    first = plain["front"][0]
    assert (first["trial"], first["accuracy"], first["test_accuracy"]) == (2, 0.95, 0.94)
    assert first["accuracy_by_rung"] == [0.6, 0.9, 0.95]
    assert plain["front"][1]["test_accuracy"] is None
    assert [b["baseline"] for b in plain["baselines"]] == ["uniform_l1", "uniform_l1"]
    assert all(not isinstance(v, float) or math.isfinite(v) for v in first.values())


def sparse_study(record: StudyRecord) -> StudyRecord:
    """Three finished trials at equal dense FLOPs, the more accurate the more sparse FLOPs."""
    made = tuple(
        trial(i, (a,), 1.0, target=1.0, metrics={"sparsity": 1 - f, "sparse_flops": f, "sparse_flops_fraction": f})
        for i, (a, f) in enumerate(((0.95, 0.5), (0.94, 0.2), (0.80, 0.1)))
    )
    config = record.config.model_copy(update={"objectives": ("accuracy", "sparse_flops")})
    return dataclasses.replace(record, trials=made, config=config)


def test_with_sparse_flops_as_the_objective_they_are_the_cost(record: StudyRecord) -> None:
    found = Front.of(sparse_study(record))
    assert len(found.trials) == 3
    assert found.choose(Selector(knee=True)).number == 1
    assert found.choose(Selector(min_accuracy=0.9)).number == 1
    drawn = figures.front_figure(found)
    assert drawn["layout"]["xaxis"]["title"]["text"].startswith("sparse FLOPs")
    assert sorted(drawn["data"][0]["x"]) == [10.0, 20.0, 50.0]
    assert axis_of(("accuracy", "flops", "sparse_flops")) == "flops_fraction"
    assert plain_trial(found.trials[0])["sparse_flops_fraction"] == 0.5
