"""Optuna's tree-structured Parzen estimator, without reading every number of every trial again at every draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import TPESampler

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Row_D = NDArray[np.float64]


class RememberingTPE(TPESampler):
    """TPE that turns the draws of a finished trial into numbers once.

    That was nearly half of a draw with 60 dimensions. It hangs on one private method of Optuna, whose result it only
    keeps: with an Optuna that has no such method the sampler is the same and slower. A test compares the draws.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known: dict[tuple[str, ...], dict[int, Row_D | None]] = {}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], *rest: Any
    ) -> dict[str, NDArray[np.float64]]:
        names = tuple(search_space)
        known = self._known.setdefault(names, {})
        rows = []
        for trial in trials:
            if trial.number in known:
                row = known[trial.number]
            else:
                row = self._row(trial, search_space, *rest)
                if trial.state.is_finished():
                    known[trial.number] = row
            if row is not None:
                rows.append(row)
        table_TD = np.array(rows).reshape(len(rows), len(names))
        return {name: np.ascontiguousarray(table_TD[:, i]) for i, name in enumerate(names)}

    def _row(self, trial: FrozenTrial, search_space: dict[str, BaseDistribution], *rest: Any) -> Row_D | None:
        """Return the trial's numbers, None when it has not drawn all of these dimensions."""
        found = super()._get_internal_repr([trial], search_space, *rest)
        columns = [found[name] for name in search_space]
        return np.concatenate(columns) if all(len(column) for column in columns) else None
