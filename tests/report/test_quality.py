"""Hand-worked fronts. The example study is in conftest."""

from __future__ import annotations

import dataclasses

import pytest

from autoprune.report import quality
from autoprune.study.records import TrialRecord

from .conftest import trial

OBJECTIVES = ("accuracy", "flops")


def numbers(trials: tuple[TrialRecord, ...]) -> list[int]:
    return [t.number for t in trials]


def test_front_leaves_out_dominated_and_unfinished(trials: tuple[TrialRecord, ...]) -> None:
    # 0 (0.90 at 0.50) is beaten by 2 (0.95 at 0.49), 1 (0.80 at 0.25) by 4 (0.88 at 0.24)
    assert numbers(quality.non_dominated(trials, OBJECTIVES)) == [2, 7, 4]


def test_front_keeps_the_first_of_equals() -> None:
    assert numbers(quality.non_dominated((trial(3, (0.9,), 0.5), trial(1, (0.9,), 0.5)), OBJECTIVES)) == [1]


def test_front_of_nothing() -> None:
    assert quality.non_dominated((trial(0, (0.5,), 0.5, state="running"),), OBJECTIVES) == ()


def test_one_objective_leaves_one() -> None:
    pair = (trial(0, (0.9,), 0.5), trial(1, (0.8,), 0.1))
    assert numbers(quality.non_dominated(pair, ("accuracy",))) == [0]


def test_a_third_objective_widens_the_front() -> None:
    pair = (trial(0, (0.9,), 0.5), trial(1, (0.8,), 0.6))
    assert numbers(quality.non_dominated(pair, OBJECTIVES)) == [0]
    faster = trial(2, (0.7,), 0.7)
    assert numbers(quality.non_dominated((*pair, faster), ("accuracy", "flops", "latency"))) == [0]


@pytest.mark.parametrize(
    ("target", "expected"), [(1.0, 2), (0.49, 2), (0.489, 7), (0.35, 7), (0.3, 4), (0.24, 4), (0.2, None)]
)
def test_best_at(trials: tuple[TrialRecord, ...], target: float, expected: int | None) -> None:
    found = quality.best_at(trials, target)
    assert (None if found is None else found.number) == expected


def test_hypervolume_of_two_slabs() -> None:
    # (0.8 - 0) * (1 - 0.25) + (0.9 - 0.8) * (1 - 0.5)
    assert quality.hypervolume([(0.9, 0.5), (0.8, 0.25)], (0.0, 1.0)) == pytest.approx(0.65)


def test_hypervolume_ignores_dominated_and_outside_points() -> None:
    points = [(0.9, 0.5), (0.85, 0.6), (0.95, 1.0), (0.0, 0.1)]
    assert quality.hypervolume(points, (0.0, 1.0)) == pytest.approx(0.45)
    assert quality.hypervolume([], (0.0, 1.0)) == 0.0


def test_hypervolume_never_falls(trials: tuple[TrialRecord, ...]) -> None:
    # 0.45; + 0.3 * ... : 0.8 * 0.75 + 0.1 * 0.5 = 0.65; then 0.95 at 0.49 lifts the upper slab
    found = quality.hypervolume_over(trials)
    assert [n for n, _ in found] == [0, 1, 2, 4, 7]
    assert [v for _, v in found[:3]] == pytest.approx([0.45, 0.65, 0.8 * 0.75 + 0.15 * 0.51])
    values = [v for _, v in found]
    assert values == sorted(values)


def test_knee_is_farthest_above_the_chord() -> None:
    # scaled: (0.25, 0.8) is 0.55 above the diagonal, (0.5, 0.9) is 0.4
    points = ((0.2, 0.0), (0.4, 0.8), (0.6, 0.9), (1.0, 1.0))
    assert quality.knee([trial(i, (a,), f) for i, (f, a) in enumerate(points)]).number == 1


def test_knee_of_two_is_the_cheaper() -> None:
    assert quality.knee([trial(0, (0.9,), 0.5), trial(1, (0.8,), 0.3)]).number == 1


def test_noise_is_the_binomial_error_of_the_least_certain_trial() -> None:
    """0.9 of 400: sqrt(0.09 / 400) = 1.5 points; 0.5 of 100: 5 points, 0.8 of 100: 4 points."""
    rows = []
    for number, (seen, unseen) in enumerate([(0.9, 0.5), (0.95, 0.8)]):
        made = trial(number, (seen,), 0.5, test={"accuracy": unseen, "count": 100.0})
        counted = dataclasses.replace(made.rungs[0], metrics={**made.rungs[0].metrics, "count": 400.0})
        rows.append(dataclasses.replace(made, rungs=(counted,)))
    expected = "One standard error is up to 1.5 points (validation, 400 samples) and 5.0 points (test, 100 samples)."
    assert quality.noise(rows) == expected


def test_noise_without_counts_says_nothing(trials: tuple[TrialRecord, ...]) -> None:
    plain = [dataclasses.replace(t, rungs=(), test=None) for t in trials]
    assert quality.noise(plain) == ""


def test_a_few_zeros_are_no_sparsity(trials: tuple[TrialRecord, ...]) -> None:
    def with_zeros(share: float) -> list[TrialRecord]:
        rung = dataclasses.replace(trials[0].rungs[-1], metrics={**trials[0].rungs[-1].metrics, "sparsity": share})
        return [dataclasses.replace(trials[0], rungs=(rung,)), *trials[1:]]

    assert quality.has_sparsity(with_zeros(0.5))
    assert not quality.has_sparsity(with_zeros(0.001))
