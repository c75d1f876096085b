from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.allocation._sensitivities import Curve, Sensitivities, keep_fractions, measure_groups
from autoprune.allocation.sensitivity import Sensitivity, shares
from autoprune.probe import Probe
from autoprune.tasks import Evaluation
from autoprune.trial import Bench

P = [1 - f for f in keep_fractions(9)]


def curve(size: int, falls_at: float) -> Curve:
    """Accuracy 0.9 while at most the share `falls_at` is removed, 0.5 beyond."""
    counts = np.array([max(1, int(size * (1 - p) + 1e-9)) for p in P])
    accuracies = np.array([0.9 if p <= falls_at + 1e-9 else 0.5 for p in P])
    return Curve(size, keep_fractions(9), counts, 1 - accuracies, accuracies)


def found(**falls_at: float) -> Sensitivities:
    return Sensitivities(loss=0.1, accuracy=0.9, curves={name: curve(20, at) for name, at in falls_at.items()})


def test_stage_takes_the_median_and_skips_what_bears_less_than_half() -> None:
    stages = {"a": "32", "b": "32", "c": "32", "d": "16", "e": "16"}
    removed = shares(found(a=0.6, b=0.4, c=0.1, d=0.0, e=0.2), stages, 0.01)
    # stage 32: median of 0.6, 0.4, 0.1 is 0.4, and 0.1 is below half of it; stage 16: median 0.1, and 0 is below half
    assert removed == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.0, "d": 0.0, "e": 0.1})


def test_the_largest_passing_share_counts_even_behind_a_dip() -> None:
    dipped = curve(20, 0.6)
    dipped.accuracies[1] = 0.1
    sensitivities = Sensitivities(loss=0.1, accuracy=0.9, curves={"a": dipped})
    assert shares(sensitivities, {"a": "8"}, 0.01) == pytest.approx({"a": 0.6})


def test_tolerance_says_how_much_accuracy_may_go() -> None:
    assert shares(found(a=0.3), {"a": "8"}, 0.4) == pytest.approx({"a": 0.9})
    assert shares(found(a=0.3), {"a": "8"}, 0.39) == pytest.approx({"a": 0.3})


def test_path_keeps_the_proportions_of_the_rule() -> None:
    from autoprune.graph import trace

    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))
    structure = trace(model, torch.randn(2, 4))

    def measured(counts: dict[str, int], samples: int) -> Evaluation:
        # the first layer bears the loss of 30 % of its units, the second that of 60 %; as stages of their own
        fine = counts.get("0", 20) >= 14 and counts.get("2", 20) >= 8
        return Evaluation(0.1, 0.9 if fine else 0.2, samples)

    bare = AllocationContext.of({"0": torch.rand(20), "2": torch.rand(20)}, structure)
    context = AllocationContext(
        scores=bare.scores,
        structure=structure,
        full_sizes=bare.full_sizes,
        cost=bare.cost,
        budget=bare.budget,
        measure=measured,  # type: ignore[arg-type]
    )
    path = Sensitivity().path(context)
    # linear layers have no positions: both are of one stage, whose median of 0.3 and 0.6 is 0.45 for both
    for strength in (0.3, 1.0, 2.0):
        kept = path(strength)
        assert kept[0] == pytest.approx(kept[1])


def test_curve_begins_at_the_uncut_model_for_every_group(digits_bench: Bench, digits_probe: Probe) -> None:
    """Oracle: at p = 0 the curve equals the baseline exactly, and no weight of the model changes."""
    before = copy.deepcopy(digits_bench.model.state_dict())
    structure = digits_bench.base.structure
    scores = {g.name: torch.rand(g.size) for g in structure.groups}
    sensitivities = measure_groups(AllocationContext.of(scores, structure), digits_probe, (1.0, 0.5), 64)
    for one in sensitivities.curves.values():
        assert one.losses[0] == sensitivities.loss
        assert one.accuracies[0] == sensitivities.accuracy
        assert one.losses[1] != sensitivities.loss
    after = digits_bench.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
