"""Draws: an Optuna study in memory that mirrors the study of record.

A sampler reads all trials at every draw and stores every number it draws. In a database that is some forty
transactions a trial, and a death between two of them leaves a trial that has half its draws. In memory it costs
milliseconds; the controller then records a trial with all its draws at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from autoprune.search.objectives import Direction


class Asker:
    """Asks a sampler. Trials are known by their numbers in the study of record."""

    def __init__(self, directions: Sequence[Direction], sampler: BaseSampler, past: Sequence[FrozenTrial]) -> None:
        """Begin with the trials of record; running ones count as running."""
        self._memory = InMemoryStorage()
        self._study = optuna.create_study(storage=self._memory, directions=list(directions), sampler=sampler)
        self._number_here: dict[int, int] = {}
        for trial in past:
            made = self._memory.create_new_trial(self._study._study_id, template_trial=trial)
            self._number_here[trial.number] = self._memory.get_trial_number_from_id(made)

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

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell how a trial ended; values only with COMPLETE."""
        self._study.tell(self._number_here[number], values=values, state=state)
