"""Times from a clock that tells what the test wrote down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from autoprune.cost.timing import Protocol, Series, speed_up, take_times

QUICK = Protocol(warm_up=3, most_warm_up=6, settled_calls=2, calls=4, seconds=0.0, block=2, retries=3)


class Script:
    """A clock, and runs that let it go on by the durations given, the last one again and again."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def run(self, name: str, durations: Sequence[float]) -> Callable[[], None]:
        left = list(durations)

        def call() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call

    def __call__(self) -> float:
        return self.now


def test_warm_up_calls_are_left_out_and_percentiles_are_exact() -> None:
    clock = Script()
    run = clock.run("a", [9.0, 5.0, 5.0, 0.001, 0.002, 0.003, 0.004, 0.004])
    rules = Protocol(warm_up=3, most_warm_up=6, settled_calls=2, calls=4, seconds=0.0, block=2, noisy=10.0)
    series = take_times({"a": run}, rules, clock)["a"]
    assert np.allclose(series.seconds, [[0.001, 0.002], [0.003, 0.004]])
    assert (series.count, series.median_ms) == (4, pytest.approx(2.5))
    # linear between the sorted calls: 1 + 0.3, 4 - 0.3; quartiles 1.75 and 3.25
    assert series.percentile_ms(10) == pytest.approx(1.3)
    assert series.percentile_ms(90) == pytest.approx(3.7)
    assert series.iqr_ms == pytest.approx(1.5)


def test_warm_up_ends_when_times_have_settled_and_at_the_latest_at_its_limit() -> None:
    clock = Script()
    take_times({"a": clock.run("a", [9.0, 7.0, 5.0, 5.1, 1.0])}, QUICK, clock)
    assert len(clock.order) == 4 + 4
    wild = Script()
    take_times({"a": wild.run("a", [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 1.0])}, QUICK, wild)
    assert len(wild.order) == 6 + 4


def test_runs_take_turns_in_blocks() -> None:
    clock = Script()
    take_times({"a": clock.run("a", [1.0]), "b": clock.run("b", [2.0])}, QUICK, clock)
    assert "".join(clock.order) == "aaabbb" + "aabbaabb"


def test_at_least_so_many_seconds_of_each_and_no_more_than_the_limit() -> None:
    clock = Script()
    rules = Protocol(warm_up=1, settled_calls=1, calls=2, seconds=1.0, most_seconds=100.0, block=2)
    found = take_times({"a": clock.run("a", [0.5]), "b": clock.run("b", [0.125])}, rules, clock)
    assert {name: series.count for name, series in found.items()} == {"a": 8, "b": 8}
    short = Protocol(warm_up=1, settled_calls=1, calls=2, seconds=1.0, most_seconds=3.0, block=2)
    found = take_times({"a": clock.run("a", [0.5]), "b": clock.run("b", [0.125])}, short, clock)
    assert found["a"].count == 6


def test_a_noisy_series_is_taken_again_three_times_and_then_marked() -> None:
    clock = Script()
    # p90 / p10 of (1, 1, 1, 2): 1.7
    run = clock.run("a", [1.0] * 3 + [1.0, 1.0, 1.0, 2.0] * 3 + [1.0, 1.0, 1.0, 3.0, 1.0])
    found = take_times({"a": run}, QUICK, clock)["a"]
    assert len(clock.order) == 3 + 4 * 4
    assert found.noisy
    assert found.percentile_ms(100) == 3000.0


def test_a_repetition_that_is_calm_ends_it() -> None:
    clock = Script()
    run = clock.run("a", [1.0] * 3 + [1.0, 1.0, 1.0, 2.0] + [1.0])
    found = take_times({"a": run}, QUICK, clock)["a"]
    assert len(clock.order) == 3 + 2 * 4
    assert not found.noisy
    assert found.percentile_ms(100) == 1000.0


def series(*rows: Sequence[float]) -> Series:
    return Series(seconds=np.asarray(rows, dtype=float))


def test_the_speed_up_is_the_ratio_of_medians() -> None:
    found = speed_up(series([4.0, 4.0], [4.0, 4.0]), series([2.0, 2.0], [2.0, 2.0]))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    assert found.is_faster
    assert not found.is_slower


def test_what_slows_both_leaves_the_interval_narrow() -> None:
    load = [1.0, 1.0, 5.0, 1.0, 5.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0]
    base, small = series(*([2.0 * x] for x in load)), series(*([1.0 * x] for x in load))
    found = speed_up(base, small)
    assert (found.low, found.high) == (2.0, 2.0)


def test_times_that_overlap_are_no_speed_up() -> None:
    random = np.random.default_rng(0)
    base = Series(seconds=random.uniform(0.9, 1.1, (20, 5)))
    other = Series(seconds=random.uniform(0.9, 1.1, (20, 5)))
    found = speed_up(base, other)
    assert found.low < 1 < found.high
    assert (found.is_faster, found.is_slower) == (False, False)
    assert speed_up(base, other) == found
