from __future__ import annotations

import math

import pytest

from autoprune.errors import LossNotFinite
from autoprune.recipe import Target
from autoprune.study.rungs import Rungs

HALF = Target(flops_fraction=0.5)


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "flops_fraction": 0.5, "count": 100.0}


def test_a_point_has_what_the_stopper_asks_for(make_config) -> None:
    rungs = Rungs(make_config())
    point = rungs.point(7, Target(flops_fraction=0.5, params_fraction=0.4), metrics(0.9), baseline=True)
    assert (point.trial, point.accuracy, point.count, point.baseline) == (7, 0.9, 100.0, True)
    assert point.pinned == {"flops": 0.5, "params": 0.4}
    assert point.costs == {"flops": 0.5}
    with pytest.raises(LossNotFinite):
        rungs.point(8, HALF, metrics(math.nan), baseline=False)


def test_every_rung_has_its_own_rivals_and_nobody_leaves_the_top(make_config) -> None:
    rungs = Rungs(make_config(rungs__noise=0.0))
    good, bad = (rungs.point(i, HALF, metrics(a), baseline=False) for i, a in enumerate((0.9, 0.5)))
    assert rungs.promote(0, good)
    assert not rungs.promote(0, bad)
    assert rungs.promote(1, bad)
    assert not rungs.promote(2, good)


def test_decisions_of_an_earlier_launch_count(make_config) -> None:
    """Four results that tie, two places: with two promoted the fifth stays, with one it goes up."""
    for went_up, expected in ((2, False), (1, True)):
        rungs = Rungs(make_config())
        for i in range(4):
            rungs.add(0, rungs.point(i, HALF, metrics(0.91), baseline=False), promoted=i < went_up)
        assert rungs.promote(0, rungs.point(4, HALF, metrics(0.90), baseline=False)) is expected
