from __future__ import annotations

import math
from pathlib import Path

import pytest

from autoprune.errors import BadInput, NotApplicable
from autoprune.recipe import Recipe
from autoprune.study.config import load
from autoprune.study.executors.replay import Replay
from autoprune.study.jobs import Job, JobResult
from autoprune.study.launch import launch
from autoprune.study.replay import Measured, ReplayWorker, Table
from autoprune.study.testing import fake_metrics

SPACE = {
    "criterion": {"choose": ["l1_norm", "l2_norm"]},
    "recovery": ["bn_reestimation", {"name": "finetune", "lr": "search"}],
}


def make_recipe(lr=0.03, target=0.5, criterion="l1_norm"):
    recipe = {"criterion": criterion, "recovery": ["bn_reestimation", {"name": "finetune", "lr": lr}]}
    return Recipe.parse(recipe | {"target": {"flops_fraction": target}}).plain()


def job(recipe, rung=0, **more):
    return Job(trial=0, rung=rung, recipe=recipe, seed=0, epochs=0.0, samples=None, **more)


def measured(recipe, rungs=3):
    def at(rung):
        metrics = fake_metrics(job(recipe, rung)) | {"count": 100.0}
        del metrics["latency_ms"]
        return {
            "metrics": metrics,
            "cost": {"seconds": 1.0 + rung, "trained_samples": 100.0 * rung},
            "amounts": {"counts": {"stem": 4}} if rung == 0 else {},
        }

    return Measured(recipe=recipe, rungs=tuple(at(rung) for rung in range(rungs)))


@pytest.fixture
def table(make_config, digits_bench):
    lrs = [0.005 * 1.07**i for i in range(45)]
    known = [measured(make_recipe(lr, target)) for lr in lrs for target in (0.5, 0.25)]
    base = {"accuracy": 0.95, "flops": 1000.0, "params": 100.0, "test_accuracy": 0.9}
    return Table(make_config(), base, digits_bench.base.structure.to_json(), tuple(known))


def test_a_recipe_of_the_table_is_answered_exactly(table):
    worker, one = ReplayWorker(table), table.measured[4]
    for rung in range(3):
        result = worker.run(job(one.recipe, rung))
        assert result.metrics == one.rungs[rung]["metrics"]
        assert (result.cost, result.amounts) == (one.rungs[rung]["cost"], one.rungs[rung]["amounts"])
        assert result.notes == ("replayed exactly",)


def test_a_key_that_recipes_did_not_have_when_they_were_recorded_has_its_default(table):
    recipe = {k: v for k, v in table.measured[0].recipe.items() if k != "low_rank"}
    old = Measured(recipe=recipe, rungs=table.measured[0].rungs)
    worker = ReplayWorker(Table(table.config, table.base, table.structure, (old,)))
    assert worker.run(job(table.measured[0].recipe)).notes == ("replayed exactly",)


def test_another_recipe_is_interpolated_and_says_so(table):
    worker = ReplayWorker(table)
    new = make_recipe(lr=0.0301)
    top = worker.run(job(new, 2))
    assert top.metrics["accuracy"] == pytest.approx(fake_metrics(job(new, 2))["accuracy"], abs=0.02)
    assert 0 < top.metrics["accuracy_error"] < 0.05
    assert top.metrics["flops"] == round(1000 * top.metrics["flops_fraction"])
    assert top.metrics["flops_fraction"] == pytest.approx(0.5, abs=0.02)
    assert top.cost == pytest.approx({"seconds": 3.0, "trained_samples": 200.0})
    (note,) = top.notes
    assert note.startswith("interpolated by a forest over 90 outcomes; held out, its top-rung accuracy is off by 0.0")
    bad, good = (worker.run(job(make_recipe(lr=lr), 2)).metrics["accuracy"] for lr in (0.006, 0.029))
    assert bad < good


def test_what_the_table_says_nothing_about_is_refused(table):
    worker = ReplayWorker(table)
    with pytest.raises(NotApplicable, match="no recipe of the table has criterion bn_scale"):
        worker.run(job(make_recipe(criterion="bn_scale")))
    with pytest.raises(NotApplicable, match="rungs above 2"):
        worker.run(job(table.measured[0].recipe, 3))
    with pytest.raises(NotApplicable, match="latency"):
        worker.run(job(table.measured[0].recipe, latency=True))


def test_a_stopped_recipe_is_exact_as_far_as_it_went(table):
    stopped = measured(make_recipe(0.0777), rungs=1)
    worker = ReplayWorker(Table(table.config, table.base, table.structure, (*table.measured, stopped)))
    assert worker.run(job(stopped.recipe, 0)).notes == ("replayed exactly",)
    assert worker.run(job(stopped.recipe, 1)).notes == (worker.stated,)
    assert "over 90 outcomes" in worker.stated


def test_a_small_table_answers_only_what_it_holds(table):
    small = ReplayWorker(Table(table.config, table.base, table.structure, table.measured[:5]))
    assert small.run(job(table.measured[0].recipe)).notes == ("replayed exactly",)
    with pytest.raises(BadInput, match="5 measured recipes are too few"):
        small.run(job(make_recipe(0.0123)))


def test_a_table_is_written_and_read_the_same_every_time(table, tmp_path):
    for name in ("a", "b"):
        table.write(tmp_path / f"{name}.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    again = Table.read(tmp_path / "a.jsonl.gz")
    assert (again.config, again.base, again.measured) == (table.config, table.base, table.measured)


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "x").write_text("{}")
    with pytest.raises(BadInput, match="neither a run folder nor a table"):
        Table.read(tmp_path / "x")
    with pytest.raises(BadInput, match="neither a run folder nor a table"):
        Table.read(tmp_path / "nothing")


def test_results_arrive_in_the_order_of_simulated_time():
    jobs = [job({}, rung=0), job({}, rung=1), job({}, rung=2)]
    seconds = [5.0, 1.0, 3.0]
    executor = Replay(workers=2)

    class Worker:
        def run(self, job):
            return JobResult(metrics={"accuracy": 0.5}, cost={"seconds": seconds[job.rung]})

    told = []

    class Controller:
        def next_job(self):
            return jobs.pop(0) if jobs else None

        def started(self, job):
            pass

        def tell(self, job, outcome):
            told.append((job.rung, executor.clock()))

    executor.run(Controller(), Worker, None)
    # two at once: the second ends at 1 and the third, begun then, at 4, before the first
    assert told == [(1, 1.0), (2, 4.0), (0, 5.0)]


@pytest.fixture
def file(table, tmp_path):
    path = tmp_path / "table.jsonl.gz"
    table.write(path)
    return path


def study(make_config, file, **changes):
    executor = {"executor__name": "replay", "executor__table": str(file), "executor__workers": 2}
    return make_config(search_space=SPACE, baselines=[], budget__trials=12, **executor, **changes)


def test_a_whole_study_is_replayed(make_config, file, tmp_path):
    record = launch(study(make_config, file), run_dir=tmp_path / "run")
    states = {t.state for t in record.trials if t.recipe["criterion"]["name"] == "l1_norm"}
    assert states <= {"done", "stopped"}
    assert "done" in states
    # the table has no recipe with l2_norm
    assert {t.error_kind for t in record.trials if t.recipe["criterion"]["name"] == "l2_norm"} == {"NotApplicable"}
    assert record.base["accuracy"] == 0.95
    assert record.seconds == pytest.approx(max(r.at for t in record.trials for r in t.rungs))
    assert math.isclose(record.seconds, round(record.seconds), abs_tol=0.01), "simulated seconds are whole here"
    again = launch(study(make_config, file), run_dir=tmp_path / "other")
    assert [t.recipe for t in again.trials] == [t.recipe for t in record.trials]


def test_a_replayed_study_is_itself_a_table(make_config, file, tmp_path):
    record = launch(study(make_config, file), run_dir=tmp_path / "run")
    table = Table.read(tmp_path / "run")
    assert len(table.measured) == sum(bool(t.rungs) for t in record.trials)


def test_a_table_of_another_model_or_other_rungs_is_refused(make_config, file, tmp_path):
    with pytest.raises(BadInput, match=r"does not fit its table.*rungs\.epochs was .*, now \[0\.0, 1\.0\]"):
        launch(study(make_config, file, rungs__epochs=[0, 1]), run_dir=tmp_path / "run")


def test_a_replayed_run_folder_does_not_go_on_with_training(make_config, file, tmp_path):
    launch(study(make_config, file), run_dir=tmp_path / "run")
    trained = make_config(search_space=SPACE, baselines=[], budget__trials=20)
    with pytest.raises(BadInput, match="holds a study that was replayed"):
        launch(trained, run_dir=tmp_path / "run")


def test_replay_needs_a_table(make_config):
    with pytest.raises(BadInput, match=r"replay needs executor\.table"):
        make_config(executor__name="replay")


def test_the_shipped_table_holds_300_recipes_of_the_digits_study():
    path = Path(__file__).parents[2] / "benchmarks" / "tables" / "digits.jsonl.gz"
    if not path.is_file():
        pytest.skip("the benchmarks are not part of an installed package")
    table = Table.read(path)
    assert len(table.measured) >= 300
    assert all(len(m.rungs) == 3 for m in table.measured)
    table.check_fits(load("digits").config)
