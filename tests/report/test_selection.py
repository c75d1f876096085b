"""Hand-worked choices. The example study is in conftest."""

from __future__ import annotations

import pytest

from autoprune.errors import BadInput, UnknownName
from autoprune.report.front import Front
from autoprune.report.selection import Selector, choose
from autoprune.study.records import StudyRecord

OBJECTIVES = ("accuracy", "flops")


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (Selector(target_flops=0.5), 2),
        (Selector(target_flops=0.25), 4),
        (Selector(min_accuracy=0.9), 7),
        (Selector(min_accuracy=0.95), 2),
        (Selector(max_drop=0.04), 2),
        (Selector(max_drop=0.1), 4),
        (Selector(trial=0), 0),
        (Selector(knee=True), 4),
    ],
)
def test_choose(record: StudyRecord, selector: Selector, expected: int) -> None:
    assert Front.of(record).choose(selector).number == expected


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (Selector(), "exactly one of --target-flops.*got none"),
        (Selector(target_flops=0.5, knee=True), "got --target-flops and --knee"),
        (Selector(target_flops=0.0), "greater than 0 and at most 1, got 0"),
        (Selector(target_flops=50), r"got 50\. Did you mean 0\.5\?"),
        (Selector(min_accuracy=-0.1), "--min-accuracy is a fraction"),
        (Selector(max_drop=2), r"Did you mean 0\.02\?"),
        (Selector(target_flops=0.1), r"nearest is trial 4 with accuracy 0\.8800 at 0\.2400"),
        (Selector(min_accuracy=0.99), r"nearest is trial 2 with accuracy 0\.9500"),
        (Selector(max_drop=0.0), r"base model's 0\.9800; the nearest is trial 2"),
        (Selector(trial=3), r"trial 3 is stopped\. Finished trials: 0, 1, 2, 4, 7"),
        (Selector(trial=5), "trial 5 is failed: the training loss became nan"),
    ],
)
def test_choice_that_cannot_be(record: StudyRecord, selector: Selector, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Front.of(record).choose(selector)


def test_trial_that_does_not_exist(record: StudyRecord) -> None:
    with pytest.raises(UnknownName, match="no trial 99"):
        Front.of(record).choose(Selector(trial=99))


def test_zero_is_a_trial_number(record: StudyRecord) -> None:
    assert Front.of(record).choose(Selector(trial=0)).number == 0


def test_nothing_finished() -> None:
    with pytest.raises(BadInput, match="no trial has finished"):
        choose((), OBJECTIVES, 0.9, Selector(knee=True))
