from __future__ import annotations

import pytest

from autoprune.search.front import GrowingFront, losses


def at(accuracy, flops):
    return {"accuracy": accuracy, "flops_fraction": flops}


def test_losses_are_less_where_better():
    assert losses(["accuracy", "flops"], at(0.9, 0.5)) == (-0.9, 0.5)


def test_it_moves_only_for_what_nothing_beats_or_equals():
    front = GrowingFront(["accuracy", "flops"])
    steps = [(at(0.9, 0.5), 0), (at(0.8, 0.5), 1), (at(0.9, 0.5), 2), (None, 3), (at(0.7, 0.3), 0), (at(0.9, 0.4), 0)]
    for metrics, unmoved in steps:
        front.add(metrics)
        assert front.unmoved == unmoved


@pytest.mark.parametrize(("flops", "unmoved"), [(0.6, 1), (0.4, 0)])
def test_a_baseline_moves_it_but_is_not_counted(flops, unmoved):
    front = GrowingFront(["accuracy", "flops"])
    front.add(at(0.9, 0.5))
    front.add(None)
    front.add(at(0.9, flops), counts=False)
    assert front.unmoved == unmoved
