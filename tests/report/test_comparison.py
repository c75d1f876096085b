from __future__ import annotations

import dataclasses
import math

import pytest

from autoprune.report.comparison import beside, gain, longer_trained
from autoprune.report.front import Front
from autoprune.study.records import StudyRecord


def with_training(record: StudyRecord, samples: dict[int, float]) -> Front:
    """Return the example study's front, some trials trained on so many samples at their last rung."""

    def spent(trial):
        if trial.number not in samples or not trial.rungs:
            return trial
        *before, last = [dataclasses.replace(rung, cost={}) for rung in trial.rungs]
        last = dataclasses.replace(last, cost={"trained_samples": samples[trial.number]})
        return dataclasses.replace(trial, rungs=(*before, last))

    return Front.of(dataclasses.replace(record, trials=tuple(spent(t) for t in record.trials)))


def test_a_model_is_set_beside_the_reference_at_its_target(record: StudyRecord) -> None:
    front = Front.of(record)
    best = next(t for t in front.trials if t.number == 2)
    other = beside(front, best)
    assert other is not None
    assert (other.number, other.baseline) == (0, "uniform_l1")
    assert gain(front, best) == pytest.approx(0.05)
    assert beside(front, other) is None
    assert math.isnan(gain(front, other))


def test_longer_training_is_said(record: StudyRecord) -> None:
    assert longer_trained(with_training(record, {0: 1000.0, 2: 1050.0, 7: 900.0})) == ""
    told = longer_trained(with_training(record, {0: 1000.0, 2: 3500.0, 7: 900.0}))
    assert told.endswith("saw more samples than uniform_l1: trial 2 (3.5x).")


def test_a_reference_without_training_compares_with_nothing(record: StudyRecord) -> None:
    assert longer_trained(with_training(record, {0: 0.0, 2: 3500.0})) == ""
