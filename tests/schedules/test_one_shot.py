from __future__ import annotations

from autoprune.schedules import Step
from autoprune.schedules.one_shot import OneShot


def test_one_cut_and_no_training_within() -> None:
    assert OneShot().steps() == (Step(progress=1.0, epochs=0.0),)
