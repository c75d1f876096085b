"""The database of a study: Optuna's, with a trial written in a few statements and all trials read in two.

Optuna's own storage looks up the trial and the dimension's first use for every number that it writes (three statements
each: 60 dimensions took 60 ms), and reads a trial as a tree of objects. The tables and their meaning are Optuna's, so
that its dashboard and every other tool read the database as before.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_PARAMS = sql.table("trial_params", *map(sql.column, ("trial_id", "param_name", "param_value", "distribution_json")))
_ATTRIBUTES = sql.table("trial_user_attributes", *map(sql.column, ("trial_id", "key", "value_json")))
_TRIALS = sql.table(
    "trials",
    *map(sql.column, ("trial_id", "study_id", "number")),
    # cast to text: PostgreSQL has an enumeration here
    sql.column("state"),
    sql.column("datetime_start", sql.DateTime()),
    sql.column("datetime_complete", sql.DateTime()),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial as the database holds it, without its draws. seconds: from its start to its end."""

    id: int
    number: int
    state: str
    attributes: Mapping[str, Any]
    seconds: float | None


class Storage(RDBStorage):
    """See the module."""

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> Any:
        """Add a trial. Draws and attributes go in together; with an Optuna that has no such method, one by one."""
        if template_trial is None:
            return super()._get_prepared_new_trial(study_id, template_trial, session)
        made = super()._get_prepared_new_trial(study_id, _without_draws(template_trial), session)
        session.flush()
        trial_id = int(made.trial_id)
        params, attributes = _param_rows(trial_id, template_trial), _attribute_rows(trial_id, template_trial)
        if params:
            session.execute(sql.insert(_PARAMS), params)
        if attributes:
            session.execute(sql.insert(_ATTRIBUTES), attributes)
        return made

    def rows(self, study_id: int) -> list[Row]:
        """Return the trials of a study in order, without their draws."""
        t, a = _TRIALS.c, _ATTRIBUTES.c
        which = sql.select(
            t.trial_id, t.number, sql.cast(t.state, sql.String), t.datetime_start, t.datetime_complete
        ).where(t.study_id == study_id)
        what = (
            sql.select(a.trial_id, a.key, a.value_json)
            .select_from(sql.join(_ATTRIBUTES, _TRIALS, a.trial_id == t.trial_id))
            .where(t.study_id == study_id)
        )
        noted: dict[int, dict[str, Any]] = defaultdict(dict)
        with self.engine.connect() as connection:
            for trial_id, key, value in connection.execute(what):
                noted[trial_id][key] = json.loads(value)
            found = [
                Row(
                    id=trial_id,
                    number=number,
                    state=state,
                    attributes=noted[trial_id],
                    seconds=(end - begin).total_seconds() if begin and end else None,
                )
                for trial_id, number, state, begin, end in connection.execute(which)
            ]
        return sorted(found, key=lambda row: row.number)


def rows_of(storage: BaseStorage, study_id: int) -> list[Row]:
    """Return the trials of a study in order, without their draws, from any storage of Optuna's."""
    if isinstance(storage, Storage):
        return storage.rows(study_id)
    return [_row(trial) for trial in storage.get_all_trials(study_id, deepcopy=False)]


def _row(trial: FrozenTrial) -> Row:
    begin, end = trial.datetime_start, trial.datetime_complete
    return Row(
        id=trial._trial_id,
        number=trial.number,
        state=trial.state.name,
        attributes=trial.user_attrs,
        seconds=(end - begin).total_seconds() if begin and end else None,
    )


def _without_draws(trial: FrozenTrial) -> FrozenTrial:
    return FrozenTrial(
        number=trial.number,
        trial_id=trial._trial_id,
        state=trial.state,
        value=None,
        values=trial.values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params={},
        distributions={},
        user_attrs={},
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )


def _param_rows(trial_id: int, trial: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": trial.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(trial.distributions[name]),
        }
        for name, value in trial.params.items()
    ]


def _attribute_rows(trial_id: int, trial: FrozenTrial) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": key, "value_json": json.dumps(v)} for key, v in trial.user_attrs.items()]
