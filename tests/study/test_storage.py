from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from autoprune.study.storage import Storage, rows_of


def template(**attributes):
    return create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.25, "n": 3, "kind": "b"},
        distributions={
            "x": FloatDistribution(0.01, 1.0, log=True),
            "n": IntDistribution(1, 9),
            "kind": CategoricalDistribution(["a", "b"]),
        },
        user_attrs=attributes,
        system_attrs={"sampler": [1, 2]},
    )


@pytest.fixture
def storage(tmp_path):
    made = Storage(f"sqlite:///{tmp_path}/study.db")
    yield made
    made.remove_session()
    made.engine.dispose()


@pytest.fixture
def study(storage):
    return optuna.create_study(storage=storage, directions=["maximize", "minimize"])._study_id


def test_optunas_own_storage_reads_what_is_written(storage, study):
    storage.create_new_trial(study, template_trial=template())
    made = storage.create_new_trial(study, template_trial=template(recipe={"criterion": "l1_norm"}, seed=7))
    storage.set_trial_state_values(made, TrialState.COMPLETE, [0.9, 0.5])
    plain = RDBStorage(storage.url)
    try:
        first, second = plain.get_all_trials(study)
    finally:
        plain.remove_session()
        plain.engine.dispose()
    assert (first.number, second.number) == (0, 1)
    assert second.params == {"x": 0.25, "n": 3, "kind": "b"}
    assert second.distributions == template().distributions
    assert second.user_attrs == {"recipe": {"criterion": "l1_norm"}, "seed": 7}
    assert second.system_attrs == {"sampler": [1, 2]}
    assert (second.state, second.values) == (TrialState.COMPLETE, [0.9, 0.5])


def test_rows_are_what_the_storage_holds(storage, study):
    for seed in (4, 5):
        storage.create_new_trial(study, template_trial=template(seed=seed))
    storage.set_trial_user_attr(storage.get_trial_id_from_study_id_trial_number(study, 1), "rung_0", {"promoted": True})
    storage.set_trial_state_values(storage.get_trial_id_from_study_id_trial_number(study, 0), TrialState.PRUNED)
    storage.create_new_trial(study)
    slow = {t.number: t for t in storage.get_all_trials(study)}
    rows = rows_of(storage, study)
    assert [row.number for row in rows] == [0, 1, 2]
    for row in rows:
        assert (row.id, row.state) == (slow[row.number]._trial_id, slow[row.number].state.name)
        assert row.attributes == slow[row.number].user_attrs
    assert rows[1].attributes == {"seed": 5, "rung_0": {"promoted": True}}
    spent = slow[0].datetime_complete - slow[0].datetime_start
    assert rows[0].seconds == pytest.approx(spent.total_seconds(), abs=1e-3)
    assert rows[1].seconds is None


def test_rows_leave_other_studies_out(storage, study):
    other = optuna.create_study(storage=storage, directions=["minimize"])._study_id
    storage.create_new_trial(other, template_trial=template(seed=1))
    assert rows_of(storage, study) == []
    assert [row.attributes for row in rows_of(storage, other)] == [{"seed": 1}]


def test_rows_of_a_storage_in_memory():
    memory = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=memory)._study_id
    memory.create_new_trial(study, template_trial=template(seed=3))
    (row,) = rows_of(memory, study)
    assert (row.number, row.state, row.attributes, row.seconds) == (0, "RUNNING", {"seed": 3}, None)
