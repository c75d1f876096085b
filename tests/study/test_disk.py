from __future__ import annotations

import pytest

from autoprune.artefact import WEIGHTS
from autoprune.study import events
from autoprune.study.disk import Finished, Keeper, size_of, worth_keeping
from autoprune.study.run_folder import RunFolder


def finished(number, accuracy, flops, target="flops=0.5", baseline=None):
    return Finished(number, {"accuracy": accuracy, "flops_fraction": flops}, target, baseline)


def done(trial):
    return events.TrialDone(
        trial=trial.number, state="done", target=trial.target, baseline=trial.baseline, metrics=trial.metrics
    )


TRIALS = [
    finished(0, 0.80, 0.50, baseline="uniform_l1"),
    finished(1, 0.90, 0.49),
    finished(2, 0.85, 0.50),
    finished(3, 0.70, 0.25, target="flops=0.25"),
    # beaten by trial 3, but the best of its own target
    finished(4, 0.60, 0.30, target="flops=0.3"),
    finished(5, 0.50, 0.30, target="flops=0.3"),
]


def test_front_best_at_each_target_and_baselines_are_kept():
    assert worth_keeping(TRIALS, ["accuracy", "flops"]) == {0, 1, 3, 4}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    for number in range(8):
        folder.trial(number).mkdir(parents=True)
        (folder.trial(number) / WEIGHTS).write_bytes(b"1234")
        (folder.trial(number) / "recipe.yaml").write_text("{}")
    return folder


def left(run):
    assert all((run.trial(number) / "recipe.yaml").exists() for number in range(8))
    return {number for number in range(8) if (run.trial(number) / WEIGHTS).exists()}


def test_weights_go_as_soon_as_nobody_wants_them(run, make_config):
    keeper = Keeper(run, make_config())
    expected = (
        [set(range(8)), set(range(8)), {0, 1, 3, 4, 5, 6, 7}] + [{0, 1, 3, 4, 5, 6, 7}] * 2 + [{0, 1, 3, 4, 6, 7}]
    )
    for trial, after in zip(TRIALS, expected, strict=True):
        keeper.hear(done(trial))
        assert left(run) == after
    keeper.hear(events.TrialDone(trial=6, state="stopped", target="flops=0.5", baseline=None, metrics={}))
    keeper.hear(events.TrialFailed(trial=7, rung=0, kind="LossNotFinite", message="nan"))
    assert left(run) == {0, 1, 3, 4}


def test_what_is_beaten_later_goes_later(run, make_config):
    keeper = Keeper(run, make_config())
    keeper.hear(done(finished(1, 0.8, 0.5)))
    keeper.hear(done(finished(2, 0.9, 0.4)))
    assert left(run) == {0, 2, 3, 4, 5, 6, 7}


def test_all_weights_stay_when_asked(run, make_config):
    keeper = Keeper(run, make_config(checkpoints="all"))
    for trial in TRIALS:
        keeper.hear(done(trial))
    assert left(run) == set(range(8))


def test_size_of_a_run_folder(run):
    assert size_of(run) == 8 * (4 + 2)
