"""Draws: an Optuna study in memory that mirrors the study of record.

A sampler reads all trials at every draw and stores every number it draws. In a database that is some forty
transactions a trial, and a death between two of them leaves a trial that has half its draws. In memory it costs
milliseconds; the controller then records a trial with all its draws at once.

What a sampler costs grows with the trials it looks at, so it is shown a few hundred: see `Window`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from autoprune.search.stopper import front_numbers

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from autoprune.search.objectives import Direction

SHOWN_DONE, SHOWN_STOPPED = 160, 96
"""How many finished and how many stopped trials a sampler sees at most."""
_RECENT = 128


class Window:
    """Chooses the trials that a sampler sees: of the finished ones the best and the latest, of the stopped the latest.

    Best by non-dominated front. A sampler weighs old trials less anyway (TPE falls off linearly in age), and ranks
    stopped ones behind all finished ones; what it loses here is the memory of old failures.
    """

    def __init__(self, directions: Sequence[Direction], done: int = SHOWN_DONE, stopped: int = SHOWN_STOPPED) -> None:
        self._signs = [-1.0 if way == "maximize" else 1.0 for way in directions]
        self._most_done, self._most_stopped = done, stopped
        self._done: list[tuple[int, tuple[float, ...]]] = []
        self._stopped: deque[int] = deque()

    def add(self, number: int, state: TrialState, values: Sequence[float] | None) -> int | None:
        """Take up a trial that is over and return the number of the one that is no longer shown, if any."""
        if state is TrialState.COMPLETE and values is not None:
            losses = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
            self._done.append((number, losses))
            return self._worst() if len(self._done) > self._most_done else None
        if state is TrialState.PRUNED:
            self._stopped.append(number)
            return self._stopped.popleft() if len(self._stopped) > self._most_stopped else None
        return number

    def _worst(self) -> int:
        """Forget the oldest on the last front; never one of the latest, which a generation may still need."""
        fronts = front_numbers([losses for _, losses in self._done])
        old = range(max(1, len(self._done) - min(_RECENT, self._most_done // 2)))
        return self._done.pop(max(old, key=lambda i: (fronts[i], -i)))[0]


class _Shown(InMemoryStorage):
    """A storage that leaves out some trials where all are read."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: set[int] = set()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found: list[FrozenTrial] = super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        # the position in this list is nobody's number: samplers read `number`
        return [trial for trial in found if trial.number not in self.hidden] if self.hidden else found


class Asker:
    """Asks a sampler. Trials are known by their numbers in the study of record."""

    def __init__(self, directions: Sequence[Direction], sampler: BaseSampler, past: Sequence[FrozenTrial]) -> None:
        """Begin with the trials of record; running ones count as running."""
        self._memory = _Shown()
        self._window = Window(directions)
        self._study = optuna.create_study(storage=self._memory, directions=list(directions), sampler=sampler)
        self._number_here: dict[int, int] = {}
        for trial in past:
            made = self._memory.create_new_trial(self._study._study_id, template_trial=trial)
            number = self._memory.get_trial_number_from_id(made)
            self._number_here[trial.number] = number
            if trial.state.is_finished():
                self._over(number, trial.state, trial.values)

    def ask(self, fixed: Mapping[str, Any]) -> Trial:
        """Return a trial whose dimensions in `fixed` are given, the others to be drawn."""
        self._study.enqueue_trial(dict(fixed))
        return self._study.ask()

    def drawn(self, trial: Trial) -> FrozenTrial:
        """Return what a trial has drawn so far, with what the sampler notes about it."""
        return self._memory.get_trial(trial._trial_id)

    def keep(self, trial: Trial, number: int) -> None:
        """Note under which number a trial is recorded."""
        self._number_here[number] = trial.number

    def drop(self, trial: Trial) -> None:
        """Forget a trial that is not to be run; samplers ignore failed ones."""
        self._study.tell(trial, state=TrialState.FAIL)
        self._over(trial.number, TrialState.FAIL, None)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell how a trial ended; values only with COMPLETE."""
        here = self._number_here[number]
        self._study.tell(here, values=values, state=state)
        self._over(here, state, values)

    def _over(self, here: int, state: TrialState, values: Sequence[float] | None) -> None:
        left_out = self._window.add(here, state, values)
        if left_out is not None:
            self._memory.hidden.add(left_out)
