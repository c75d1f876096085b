from __future__ import annotations

from autoprune.schedules import Step
from autoprune.schedules.iterative import Iterative


def test_equal_steps_with_training_between() -> None:
    steps = Iterative(count=4, epochs_between=0.5).steps()
    assert steps == (
        Step(progress=0.25, epochs=0.5),
        Step(progress=0.5, epochs=0.5),
        Step(progress=0.75, epochs=0.5),
        Step(progress=1.0, epochs=0.0),
    )
