from __future__ import annotations

import itertools

import pytest

from autoprune import rooms
from autoprune.schedules import Schedule


@pytest.mark.parametrize("name", rooms.names("schedules"))
def test_progress_rises_strictly_and_ends_at_one(name: str) -> None:
    schedule = rooms.build("schedules", name)
    assert isinstance(schedule, Schedule)
    progress = [step.progress for step in schedule.steps()]
    assert progress[0] > 0
    assert progress[-1] == 1
    assert all(a < b for a, b in itertools.pairwise(progress))
    assert all(step.epochs >= 0 for step in schedule.steps())
    assert schedule.steps()[-1].epochs == 0  # what follows the last cut belongs to the recovery
