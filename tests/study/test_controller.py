from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from autoprune.errors import BadInput, UnknownName
from autoprune.search.space import load_space
from autoprune.seeds import derive_seed
from autoprune.study import events
from autoprune.study.controller import Done, Wait
from autoprune.study.executors._base import Executor
from autoprune.study.jobs import Job, JobFailure, JobResult, run_job
from autoprune.study.planner import warm_starts
from autoprune.study.testing import FakeWorker, fake_metrics


class Stops(Exception):
    """The driver goes down."""


class StopsAfter(Executor):
    """Runs jobs in this process, and goes down after some, before or after the last one is told."""

    def __init__(self, jobs: int, told: bool) -> None:
        self.jobs, self.told = jobs, told

    def run(self, controller, factory, folder):
        worker = factory()
        while isinstance(job := controller.next_job(), Job):
            self.jobs -= 1
            outcome = run_job(worker, job)
            if self.jobs == 0 and not self.told:
                raise Stops
            controller.tell(job, outcome)
            if self.jobs == 0:
                raise Stops


def test_baselines_come_first_at_every_target_and_reach_the_top(runner, make_config):
    record = runner.run(make_config())
    first = record.trials[:4]
    assert [(t.baseline, t.target_label) for t in first] == [
        ("uniform_l1", "flops=0.25"),
        ("uniform_l1", "flops=0.5"),
        ("global_taylor", "flops=0.25"),
        ("global_taylor", "flops=0.5"),
    ]
    assert all(t.state == "done" and len(t.rungs) == 3 for t in first)
    assert all(t.baseline is None for t in record.trials[4:])


def test_targets_take_turns(runner, make_config):
    record = runner.run(make_config())
    choices = runner.storage.get_all_trials(0)[0].distributions["target"].choices
    assert choices == ("flops=0.5", "flops=0.25"), "in the order of the study file, whatever comes first"
    assert Counter(t.target_label for t in record.trials[4:]) == {"flops=0.5": 3, "flops=0.25": 3}
    for trial in record.trials:
        assert trial.parsed().target == trial.target


def test_a_record_is_complete_in_itself(runner, make_config):
    config = make_config()
    record = runner.run(config)
    assert len(record.trials) == 10
    for trial in record.trials:
        assert trial.state in ("done", "stopped")
        assert (trial.state == "done") == (len(trial.rungs) == 3)
        assert trial.seed == derive_seed(config.seed, "trial", trial.number)
        assert trial.cost["trained_samples"] == 1000 * config.rungs.epochs[len(trial.rungs) - 1]
        assert [r.promoted for r in trial.rungs] == [True] * (len(trial.rungs) - 1) + [False]


def test_optuna_is_told_once_with_values_only_at_the_top(runner, make_config):
    record = runner.run(make_config())
    for trial, told in zip(record.trials, runner.storage.get_all_trials(0), strict=True):
        assert told.state.name == {"done": "COMPLETE", "stopped": "PRUNED"}[trial.state]
        assert told.values == ([trial.value("accuracy"), trial.value("flops")] if trial.state == "done" else None)


def test_baselines_are_points_that_the_sampler_learns_from(runner, make_config):
    runner.run(make_config())
    drawn = [trial.params for trial in runner.storage.get_all_trials(0)]
    assert drawn[0]["allocation"] == "uniform"
    assert drawn[0]["target"] == "flops=0.25"
    assert drawn[2]["criterion"] == "taylor_2019"


def test_failing_trials_do_not_stop_the_study(runner, make_config):
    worker = FakeWorker(fail={0: "loss", 3: "memory", 5: "error", 6: "loss"})
    record = runner.run(make_config(), worker)
    failed = {t.number: t.error_kind for t in record.trials if t.state == "failed"}
    assert failed == {0: "LossNotFinite", 3: "OutOfMemory", 5: "TrialFailed", 6: "LossNotFinite"}
    assert record.trials[0].error == "the loss became NaN"
    assert len(record.trials) == 10
    assert [e.trial for e in runner.of(events.TrialFailed)] == [0, 3, 5, 6]


@pytest.mark.parametrize("metric", ["accuracy", "flops_fraction"])
def test_nan_is_never_told(runner, make_config, metric):
    class Nan:
        def run(self, job):
            return JobResult(metrics=fake_metrics(job) | ({metric: math.nan} if job.trial == 1 else {}))

    record = runner.run(make_config(budget__trials=3), Nan)
    assert record.trials[1].error_kind == "LossNotFinite"
    assert {t.state for t in record.trials} == {"done", "failed"}


def test_a_lost_job_is_tried_again_then_fails(runner, make_config):
    config = make_config(executor__max_failures=1)
    controller = runner.controller(config)
    lost = JobFailure(kind="WorkerDied", message="killed", lost=True)
    first = controller.next_job()
    controller.tell(first, lost)
    again = controller.next_job()
    assert (again.key, again.attempt, again.seed) == (first.key, 1, first.seed)
    controller.tell(again, lost)
    assert [type(e).__name__ for e in runner.events[-2:]] == ["JobRetried", "TrialFailed"]
    assert controller.next_job().trial == first.trial + 1


def test_other_failures_are_not_tried_again(runner, make_config):
    controller = runner.controller(make_config())
    first = controller.next_job()
    controller.tell(first, JobFailure(kind="OutOfMemory", message="too big"))
    assert controller.next_job().trial != first.trial


def test_a_job_is_recorded_once(runner, make_config):
    controller = runner.controller(make_config())
    job = controller.next_job()
    result = run_job(FakeWorker(), job)
    controller.tell(job, result)
    controller.tell(job, result)
    assert len(runner.of(events.RungDone)) == 1


def test_parallel_workers_wait_only_at_the_end(runner, make_config):
    controller = runner.controller(make_config(budget__trials=1))
    job = controller.next_job()
    assert isinstance(controller.next_job(), Wait)
    for _ in range(3):
        controller.tell(job, run_job(FakeWorker(), job))
        job = controller.next_job()
    assert isinstance(job, Done)


def test_time_ends_a_study_and_leaves_nothing_running(runner, make_config):
    times = iter(range(10_000))
    record = runner.run(make_config(budget__time=40, budget__trials=1000), clock=lambda: float(next(times)))
    assert 4 < len(record.trials) < 40
    assert {t.state for t in record.trials} <= {"done", "stopped"}
    more = runner.run(make_config(budget__time=40, budget__trials=1000), clock=lambda: 0.0)
    assert len(more.trials) == len(record.trials), "the time that was used up stays used up"


def test_duplicates_are_dropped_until_the_space_is_used_up(runner, make_config):
    space = {"criterion": {"choose": ["l1_norm", "l2_norm"]}, "recovery": ["bn_reestimation"]}
    record = runner.run(make_config(search_space=space, baselines=[], budget__trials=8, sampler__name="random"))
    recipes = [json.dumps(t.recipe, sort_keys=True) for t in record.trials]
    assert len(recipes) == 8
    assert len(set(recipes)) == 4, "two criteria at two targets"


def test_front_and_baselines_are_tested_once(runner, make_config):
    record = runner.run(make_config(), test=True)
    tested = [t for t in record.trials if t.test]
    assert {t.number for t in tested} >= {0, 1, 2, 3}
    assert all(t.state == "done" for t in tested)
    again = len(runner.of(events.Tested))
    assert again == len(tested)
    runner.run(make_config(), test=True)
    assert len(runner.of(events.Tested)) == again


def test_without_a_test_split_nothing_is_tested(runner, make_config):
    assert not any(t.test for t in runner.run(make_config()).trials)


def test_a_budget_below_the_baselines_is_said(runner, make_config):
    record = runner.run(make_config(budget__trials=2))
    assert len(record.trials) == 2
    assert "less than the 4 baselines" in runner.of(events.Warned)[0].message


@pytest.mark.parametrize("name", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_runs_a_study(runner, make_config, name):
    objectives = ["accuracy", "flops", "params"]
    config = make_config(sampler__name=name, sampler__startup=5, objectives=objectives, budget__trials=7)
    record = runner.run(config)
    assert len(record.trials) == 7


def test_a_space_that_fails_costs_trials_not_the_study(runner, make_config):
    record = runner.run(make_config(search_space="builtins:repr", budget__trials=7))
    assert [t.state for t in record.trials[4:]] == ["failed"] * 3
    assert "must return a Recipe" in record.trials[5].error


def outcome(record):
    return [
        (t.number, t.state, t.baseline, t.target_label, t.recipe, t.seed, [dict(r.metrics) for r in t.rungs])
        for t in record.trials
    ]


def test_same_seed_same_study(runner, tmp_path, make_config):
    other = type(runner)(tmp_path)
    assert outcome(runner.run(make_config(seed=5))) == outcome(other.run(make_config(seed=5)))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("jobs", [1, 2, 5, 12, 17])
def test_resuming_repeats_and_loses_nothing(runner, make_config, jobs, told):
    config, worker = make_config(), FakeWorker(folder=runner.folder)
    with pytest.raises(Stops):
        runner.run(config, worker, StopsAfter(jobs, told))
    before = runner.read(config)
    record = runner.run(config, worker)
    assert len(record.trials) == 10
    assert {t.state for t in record.trials} <= {"done", "stopped"}
    for old, new in zip(before.trials, record.trials, strict=False):
        assert (old.recipe, old.seed, old.target) == (new.recipe, new.seed, new.target)
        assert new.rungs[: len(old.rungs)] == old.rungs
    runs = Counter((e["trial"], e["rung"]) for e in lines(runner.folder / "jobs.jsonl"))
    assert sum(count - 1 for count in runs.values()) == (0 if told else 1)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class _Down:
    """Wraps a storage that goes down at its n-th write."""

    def __init__(self, storage, writes):
        self._storage, self._left = storage, writes

    def __getattr__(self, name):
        found = getattr(self._storage, name)
        if not name.startswith(("set_", "create_new_trial")):
            return found

        def write(*args, **kwargs):
            self._left -= 1
            if self._left < 0:
                raise Stops
            return found(*args, **kwargs)

        return write


@pytest.mark.parametrize("writes", range(2, 19))
def test_resuming_after_a_death_at_any_write(runner, make_config, writes):
    config = make_config(budget__trials=5, targets=[0.5])

    def run(storage):
        controller = runner.controller(config, storage)
        while isinstance(job := controller.next_job(), Job):
            controller.tell(job, run_job(FakeWorker(), job))

    with pytest.raises(Stops):
        run(_Down(runner.storage, writes))
    run(runner.storage)
    trials = runner.read(config).trials
    assert {t.state for t in trials} <= {"done", "stopped"}
    assert len(trials) == 5
    assert [t.baseline for t in trials[:2]] == ["uniform_l1", "global_taylor"]
    assert all(t.state.is_finished() for t in runner.storage.get_all_trials(0))


def warm(lr, target):
    return {"criterion": "l1_norm", "allocation": "global", "target": {"flops_fraction": target},
            "recovery": ["bn_reestimation", {"name": "finetune", "lr": lr}]}  # fmt: skip


def test_a_warm_start_runs_before_the_baselines_and_once(runner, make_config):
    recipes = [warm(0.03, 0.5), warm(0.031, 0.25)]
    config = make_config(warm_start=recipes, budget__trials=9)
    with pytest.raises(Stops):
        runner.run(config, executor=StopsAfter(8, told=True))
    record = runner.run(config)
    assert [t.warm_start for t in record.trials] == [0, 1] + [None] * 7
    assert [t.recipe["recovery"][1]["lr"] for t in record.trials[:2]] == [0.03, 0.031]
    assert [t.target_label for t in record.trials[:2]] == ["flops=0.5", "flops=0.25"]
    assert [t.baseline is None for t in record.trials] == [True] * 2 + [False] * 4 + [True] * 3
    # the shipped space holds these recipes, so that the sampler learns from them
    drawn = runner.storage.get_all_trials(0)[0].params
    assert (drawn["allocation"], drawn["target"]) == ("global", "flops=0.5")


def test_a_warm_start_that_is_a_baseline_is_not_run_again(runner, make_config):
    known = runner.run(make_config(budget__trials=4)).trials[0].recipe
    other = type(runner)(runner.folder)
    record = other.run(make_config(warm_start=[known], budget__trials=6))
    assert [t.warm_start for t in record.trials] == [None] * 6


def test_warm_starts_leave_room_for_the_baselines(runner, make_config):
    recipes = [warm(0.03, 0.5), warm(0.031, 0.25), warm(0.032, 0.5)]
    record = runner.run(make_config(warm_start=recipes, budget__trials=5))
    assert [t.warm_start for t in record.trials] == [0] + [None] * 4
    assert all(t.baseline for t in record.trials[1:])


def test_named_warm_starts_run_at_every_target_the_smallest_first(runner, make_config):
    record = runner.run(make_config(search_space="low_rank", warm_start=["fitted_ranks", "knapsack"]))
    assert [t.warm_start for t in record.trials[:5]] == [0, 1, 2, 3, None]
    assert [t.target_label for t in record.trials[:4]] == ["flops=0.25", "flops=0.5"] * 2
    assert [t.recipe["low_rank"] is None for t in record.trials[:4]] == [False, False, True, True]


def test_named_warm_starts_are_of_a_kind_that_the_search_makes(runner, make_config):
    record = runner.run(make_config(search_space="channels", warm_start=["fitted_ranks", "knapsack"]))
    assert [t.warm_start for t in record.trials[:3]] == [0, 1, None]
    assert [t.recipe["allocation"]["name"] for t in record.trials[:2]] == ["knapsack"] * 2
    latency = [{"flops_fraction": None, "latency_fraction": 0.5}]
    config = make_config(search_space="low_rank", warm_start=["fitted_ranks", "knapsack"], targets=latency)
    assert [recipe.low_rank for recipe in warm_starts(config, load_space("low_rank"))] == [None]
    replay = {"executor__name": "replay", "executor__table": "table.jsonl.gz"}
    replayed = make_config(search_space="channels", warm_start=["knapsack"], **replay)
    assert warm_starts(replayed, load_space("channels")) == []


def test_what_cannot_meet_a_target_is_drawn_again(runner, make_config):
    """A third of these draws have neither a criterion nor ranks."""
    space = {"criterion": {"choose": [None, "l1_norm", "l2_norm"]}, "recovery": [{"name": "finetune", "lr": "search"}]}
    changes = {"search_space": space, "baselines": [], "budget__trials": 12, "sampler__name": "random"}
    record = runner.run(make_config(**changes))
    assert {t.state for t in record.trials} <= {"done", "stopped"}
    assert {t.recipe["criterion"]["name"] for t in record.trials} == {"l1_norm", "l2_norm"}


def test_a_space_that_cannot_meet_a_target_ends(runner, make_config):
    space = {"criterion": None, "sparsity": {"name": "han_2015", "sparsity": "search"}}
    record = runner.run(make_config(search_space=space, baselines=[], budget__trials=3))
    assert [t.error_kind for t in record.trials] == ["UnreachableTarget"] * 3


def test_an_unknown_warm_start_is_refused(runner, make_config):
    with pytest.raises(UnknownName, match=r"warm start.*Did you mean 'knapsack'"):
        runner.controller(make_config(warm_start=["knapsac"]))


def test_a_warm_start_for_another_target_is_refused(runner, make_config):
    with pytest.raises(BadInput, match=r"warm_start\[0\] has the target flops=0.4; the study's are"):
        runner.controller(make_config(warm_start=[warm(0.03, 0.4)]))


def test_patience_stops_when_the_front_does_not_move(runner, make_config):
    class Flat:
        """Every trial of a target measures the same, but trial 6."""

        def run(self, job):
            accuracy = 0.9 if job.trial == 6 else 0.5
            fraction = job.recipe["target"]["flops_fraction"]
            return JobResult(metrics={"accuracy": accuracy, "flops_fraction": fraction})

    record = runner.run(make_config(budget__patience=3, budget__trials=40), Flat)
    # four baselines, 4 and 5 move nothing, 6 does, then three do not
    assert len(record.trials) == 10
    assert len(runner.run(make_config(budget__patience=3, budget__trials=40), Flat).trials) == 10, "nor when resumed"
    assert len(runner.run(make_config(budget__patience=5, budget__trials=40), Flat).trials) == 12


def test_patience_waits_for_the_baselines_behind_warm_starts(runner, make_config):
    class Flat:
        def run(self, job):
            fraction = job.recipe["target"]["flops_fraction"]
            return JobResult(metrics={"accuracy": 0.5, "flops_fraction": fraction})

    begun = [warm(0.01 * lr, 0.5) for lr in range(1, 5)]
    record = runner.run(make_config(warm_start=begun, budget__patience=2, budget__trials=40), Flat)
    assert sum(t.baseline is not None for t in record.trials) == 4
    # a baseline's smaller target moves the front, then two trials do not
    assert len(record.trials) == 10


def test_patience_in_time_begins_behind_the_baselines(runner, make_config):
    now = [0.0]

    class Flat:
        """A job takes 10 seconds. Every trial of a target measures the same."""

        def run(self, job):
            now[0] += 10.0
            return JobResult(metrics={"accuracy": 0.5, "flops_fraction": job.recipe["target"]["flops_fraction"]})

    config = make_config(rungs__epochs=[0], budget__patience_time=35, budget__trials=40)
    record = runner.run(config, Flat, clock=lambda: now[0])
    # the first baseline's smallest target moves the front, at 10 s; no trial begins at 45 s or later
    assert [t.rungs[-1].at for t in record.trials] == [10, 20, 30, 40, 50]
    assert len(runner.run(config, Flat, clock=lambda: 0.0).trials) == 5, "nor when resumed"


def test_the_time_of_all_workers_can_be_the_budget(runner, make_config):
    class Slow:
        def run(self, job):
            return JobResult(metrics=fake_metrics(job), cost={"seconds": 10.0})

    # three rungs of 10 s each for every baseline: the third ends at 90 s
    record = runner.run(make_config(budget__worker_time="65s"), Slow)
    assert [t.state for t in record.trials] == ["done", "done", "stopped"]
    assert record.trials[2].stopped_by == "time"
    assert len(runner.run(make_config(budget__worker_time="65s"), Slow).trials) == 3
