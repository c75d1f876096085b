from __future__ import annotations

import pytest

from autoprune.recipe import Recipe
from autoprune.schedules import Step
from autoprune.schedules.interleaved import Interleaved
from autoprune.trial import Bench, prepare


def test_small_steps_with_samples_between_but_not_after_the_last() -> None:
    steps = Interleaved(count=4, samples_between=64, momentum=0.9).steps()
    assert steps == (
        Step(progress=0.25, epochs=0.0, samples=64, momentum=0.9),
        Step(progress=0.5, epochs=0.0, samples=64, momentum=0.9),
        Step(progress=0.75, epochs=0.0, samples=64, momentum=0.9),
        Step(progress=1.0, epochs=0.0, samples=0, momentum=0.9),
    )


def test_exactly_the_samples_asked_for_are_trained_on(digits_bench: Bench) -> None:
    schedule = {"name": "interleaved", "count": 5, "samples_between": 40}
    prepared = prepare(Recipe.parse({"schedule": schedule, "target": {"flops_fraction": 0.5}}), digits_bench, 0)
    assert prepared.cost.trained_samples == 4 * 40
    assert 0.47 < prepared.amounts.flops_fraction <= 0.5


def test_scores_are_smoothed_over_the_units_that_are_left() -> None:
    import torch

    from autoprune.trial.choosing import smoothed

    now = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])}
    before = {"a": torch.tensor([11.0, 0.0])}
    found = smoothed(now, before, 0.9)
    assert found["a"].tolist() == pytest.approx([0.9 * 11 + 0.1, 0.2])
    assert found["b"].tolist() == [5.0]
    assert smoothed(now, {}, 0.9)["a"].tolist() == [1.0, 2.0]
