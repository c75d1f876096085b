"""What a running study shows, event by event."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from autoprune.cli import progress
from autoprune.cli.progress import Progress
from autoprune.study import events
from autoprune.study.config import StudyConfig

TARGETS = ("flops=0.5", "flops=0.25")
STARTED = events.StudyStarted(name="s", trials=4, rungs=(0.0, 1.0), targets=TARGETS, finished=1, continued=0)


def trial(number: int, baseline: str | None = None) -> events.TrialStarted:
    return events.TrialStarted(trial=number, target=TARGETS[0], baseline=baseline, recipe={}, rung=0)


def done(number: int, accuracy: float, state: str = "done") -> events.TrialDone:
    return events.TrialDone(trial=number, state=state, target=TARGETS[0], baseline=None, metrics={"accuracy": accuracy})


def rung(number: int) -> events.RungDone:
    return events.RungDone(
        trial=number, rung=0, target=TARGETS[0], baseline=None, metrics={"accuracy": 0.5}, promoted=True
    )


@pytest.fixture
def seen() -> Progress:
    clock = iter((100.0, 110.0, 110.0, 110.0, 110.0))
    found = Progress(planned=4, targets=TARGETS, top=1, clock=lambda: next(clock))
    for event in (STARTED, trial(1), trial(2, "uniform_l1"), rung(1), done(1, 0.9)):
        found.see(event)
    return found


def test_counts_and_remaining_time(seen: Progress) -> None:
    assert (seen.over, seen.stopped) == (2, 0)
    # one trial in ten seconds, two to go
    assert seen.remaining() == pytest.approx(20.0)


def test_no_forecast_before_a_trial_is_over() -> None:
    found = Progress(planned=4, targets=TARGETS, top=1)
    found.see(STARTED)
    assert found.remaining() is None


def test_best_of_a_target_is_the_most_accurate(seen: Progress) -> None:
    seen.see(done(3, 0.8))
    seen.see(done(4, 0.95, state="stopped"))
    assert seen.best[TARGETS[0]].accuracy == 0.9
    assert TARGETS[1] not in seen.best


def test_failures_and_retries(seen: Progress) -> None:
    seen.see(events.TrialFailed(trial=2, rung=1, kind="OutOfMemory", message="too big"))
    seen.see(events.JobRetried(trial=3, rung=0, attempt=1, message="worker died"))
    assert seen.failures == ["trial 2, rung 1: OutOfMemory: too big"]
    assert 2 not in seen.running
    assert "worker died" in seen.warnings[0]


def test_panel_shows_everything(seen: Progress) -> None:
    seen.see(events.TrialFailed(trial=9, rung=0, kind="LossNotFinite", message="nan"))
    out = io.StringIO()
    Console(file=out, width=100).print(progress.panel(seen))
    text = out.getvalue()
    for part in (
        "3 of 4 trials", "1 failed", "best at flops=0.5   90.00 %  trial 1", "best at flops=0.25  -",
        "running  trial 2 (uniform_l1), flops=0.5", "failed   trial 9",
    ):  # fmt: skip
        assert part in text


def test_lines_without_a_terminal() -> None:
    config = StudyConfig.model_validate(
        {"name": "s", "model": {"name": "lenet"}, "data": {"name": "digits"}, "targets": [0.5, 0.25],
         "budget": {"trials": 4}}
    )  # fmt: skip
    out = io.StringIO()
    with progress.following(Console(file=out, width=160), config) as listen:
        for event in (
            events.Preparing(step="base", detail="training", done=1, total=9),
            events.Preparing(step="base", detail="training", done=2, total=9),
            STARTED, trial(1), rung(1), done(1, 0.9), done(2, 0.1, state="stopped"),
            events.Warned(message="careful [this]"),
            events.StudyDone(done=3, stopped=1, failed=0, seconds=75.0),
        ):  # fmt: skip
            listen(event)
    assert out.getvalue().splitlines() == [
        "preparing: base training",
        "4 trials, targets flops=0.5, flops=0.25, 1 finished before",
        "[2/4] trial 1, flops=0.5: done, accuracy 90.00 %",
        "[3/4] trial 2, flops=0.5: stopped",
        "Warning: careful [this]",
        "3 done, 1 stopped, 0 failed in 1 min 15 s",
    ]
