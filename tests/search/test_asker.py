from __future__ import annotations

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from autoprune.search.asker import Asker, Window

COMPLETE, PRUNED = TrialState.COMPLETE, TrialState.PRUNED
optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_a_window_forgets_the_oldest_stopped_trial():
    window = Window(["maximize", "minimize"], stopped=2)
    assert [window.add(n, PRUNED, None) for n in range(4)] == [None, None, 0, 1]


def test_a_window_forgets_the_worst_finished_trial_and_keeps_the_latest():
    window = Window(["maximize", "minimize"], done=4)
    points = [(0.9, 0.5), (0.5, 0.5), (0.8, 0.3), (0.2, 0.9)]
    assert [window.add(n, COMPLETE, list(p)) for n, p in enumerate(points)] == [None] * 4
    # trial 3 is on the last front of all, but among the two latest; of the three before it 1 is dominated
    assert window.add(4, COMPLETE, [0.1, 0.95]) == 1
    # 0 and 2 are the front, 3 is dominated and no longer among the latest
    assert window.add(5, COMPLETE, [0.1, 0.99]) == 3


def test_failed_trials_are_not_shown():
    assert Window(["maximize"]).add(3, TrialState.FAIL, None) == 3


class Watching(RandomSampler):
    """Notes the trials that it is shown."""

    def before_trial(self, study, trial):
        self.seen = [t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("autoprune.search.asker.Window", lambda directions: Window(directions, done=2, stopped=1))


def test_a_sampler_sees_the_window_and_every_trial_can_be_told(small):
    sampler = Watching()
    asker = Asker(["maximize"], sampler, [])
    for number, accuracy in enumerate([0.9, 0.1, 0.8, None, None, 0.7]):
        trial = asker.ask({"x": 0.5})
        trial.suggest_float("x", 0, 1)
        asker.keep(trial, number)
        asker.tell(number, *((PRUNED, None) if accuracy is None else (COMPLETE, [accuracy])))
    asker.ask({})
    # 0.9 stays as the best, 0.7 as the latest; of the stopped ones the later
    assert sampler.seen == [0, 4, 5]


def test_past_trials_fill_the_window(small):
    first = Asker(["maximize"], RandomSampler(), [])
    past = []
    for number, accuracy in enumerate([0.1, 0.9, 0.5]):
        trial = first.ask({})
        trial.suggest_float("x", 0, 1)
        first.keep(trial, number)
        first.tell(number, COMPLETE, [accuracy])
        past.append(first.drawn(trial))
    sampler = Watching()
    Asker(["maximize"], sampler, past).ask({})
    assert sampler.seen == [1, 2]
