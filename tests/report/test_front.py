"""Hand-worked fronts and choices. The example study is in conftest."""

from __future__ import annotations

import dataclasses
import math

import pytest

from autoprune.errors import BadInput, UnknownName
from autoprune.report import figures, front
from autoprune.report.front import Front, Selector, axis_of, plain_trial
from autoprune.study.records import StudyRecord, TrialRecord

from .conftest import trial

OBJECTIVES = ("accuracy", "flops")


def numbers(trials: tuple[TrialRecord, ...]) -> list[int]:
    return [t.number for t in trials]


def test_front_leaves_out_dominated_and_unfinished(trials: tuple[TrialRecord, ...]) -> None:
    # 0 (0.90 at 0.50) is beaten by 2 (0.95 at 0.49), 1 (0.80 at 0.25) by 4 (0.88 at 0.24)
    assert numbers(front.non_dominated(trials, OBJECTIVES)) == [2, 7, 4]


def test_front_keeps_the_first_of_equals() -> None:
    assert numbers(front.non_dominated((trial(3, (0.9,), 0.5), trial(1, (0.9,), 0.5)), OBJECTIVES)) == [1]


def test_front_of_nothing() -> None:
    assert front.non_dominated((trial(0, (0.5,), 0.5, state="running"),), OBJECTIVES) == ()


def test_one_objective_leaves_one() -> None:
    pair = (trial(0, (0.9,), 0.5), trial(1, (0.8,), 0.1))
    assert numbers(front.non_dominated(pair, ("accuracy",))) == [0]


def test_a_third_objective_widens_the_front() -> None:
    pair = (trial(0, (0.9,), 0.5), trial(1, (0.8,), 0.6))
    assert numbers(front.non_dominated(pair, OBJECTIVES)) == [0]
    faster = trial(2, (0.7,), 0.7)
    assert numbers(front.non_dominated((*pair, faster), ("accuracy", "flops", "latency"))) == [0]


@pytest.mark.parametrize(
    ("target", "expected"), [(1.0, 2), (0.49, 2), (0.489, 7), (0.35, 7), (0.3, 4), (0.24, 4), (0.2, None)]
)
def test_best_at(trials: tuple[TrialRecord, ...], target: float, expected: int | None) -> None:
    found = front.best_at(trials, target)
    assert (None if found is None else found.number) == expected


def test_hypervolume_of_two_slabs() -> None:
    # (0.8 - 0) * (1 - 0.25) + (0.9 - 0.8) * (1 - 0.5)
    assert front.hypervolume([(0.9, 0.5), (0.8, 0.25)], (0.0, 1.0)) == pytest.approx(0.65)


def test_hypervolume_ignores_dominated_and_outside_points() -> None:
    points = [(0.9, 0.5), (0.85, 0.6), (0.95, 1.0), (0.0, 0.1)]
    assert front.hypervolume(points, (0.0, 1.0)) == pytest.approx(0.45)
    assert front.hypervolume([], (0.0, 1.0)) == 0.0


def test_hypervolume_never_falls(trials: tuple[TrialRecord, ...]) -> None:
    # 0.45; + 0.3 * ... : 0.8 * 0.75 + 0.1 * 0.5 = 0.65; then 0.95 at 0.49 lifts the upper slab
    found = front.hypervolume_over(trials)
    assert [n for n, _ in found] == [0, 1, 2, 4, 7]
    assert [v for _, v in found[:3]] == pytest.approx([0.45, 0.65, 0.8 * 0.75 + 0.15 * 0.51])
    values = [v for _, v in found]
    assert values == sorted(values)


def test_knee_is_farthest_above_the_chord() -> None:
    # scaled: (0.25, 0.8) is 0.55 above the diagonal, (0.5, 0.9) is 0.4
    points = ((0.2, 0.0), (0.4, 0.8), (0.6, 0.9), (1.0, 1.0))
    assert front.knee([trial(i, (a,), f) for i, (f, a) in enumerate(points)]).number == 1


def test_knee_of_two_is_the_cheaper() -> None:
    assert front.knee([trial(0, (0.9,), 0.5), trial(1, (0.8,), 0.3)]).number == 1


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
        front.choose((), OBJECTIVES, 0.9, Selector(knee=True))


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


def test_noise_is_the_binomial_error_of_the_least_certain_trial() -> None:
    """0.9 of 400: sqrt(0.09 / 400) = 1.5 points; 0.5 of 100: 5 points, 0.8 of 100: 4 points."""
    rows = []
    for number, (seen, unseen) in enumerate([(0.9, 0.5), (0.95, 0.8)]):
        made = trial(number, (seen,), 0.5, test={"accuracy": unseen, "count": 100.0})
        counted = dataclasses.replace(made.rungs[0], metrics={**made.rungs[0].metrics, "count": 400.0})
        rows.append(dataclasses.replace(made, rungs=(counted,)))
    expected = "One standard error is up to 1.5 points (validation, 400 samples) and 5.0 points (test, 100 samples)."
    assert front.noise(rows) == expected


def test_noise_without_counts_says_nothing(trials: tuple[TrialRecord, ...]) -> None:
    plain = [dataclasses.replace(t, rungs=(), test=None) for t in trials]
    assert front.noise(plain) == ""


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
