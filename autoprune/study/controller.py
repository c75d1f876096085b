"""The controller decides what is run next and keeps the record. Only it writes to the storage.

Executors call `next_job`, `started` and `tell`, from one thread. A trial is recorded with its recipe in one write, and
told once: COMPLETE at the top rung with the objectives' values, PRUNED for a stopped trial, FAIL for a failed one. In
between it is RUNNING in the storage; its state is then its last rung's record and the artefact in its folder, so a
study whose driver was killed goes on from there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from autoprune.errors import AutopruneError
from autoprune.recipe import Target
from autoprune.search import objectives
from autoprune.search.asker import Asker
from autoprune.search.front import GrowingFront
from autoprune.search.nodes import Items
from autoprune.search.samplers import build_sampler
from autoprune.search.space import Space
from autoprune.seeds import derive_seed
from autoprune.study import events, records
from autoprune.study.config import StudyConfig, target_label
from autoprune.study.disk import Finished, worth_keeping
from autoprune.study.jobs import Job, JobFailure, JobQueue, JobResult
from autoprune.study.planner import Draft, Planner
from autoprune.study.rungs import Rungs
from autoprune.study.spending import Spending
from autoprune.study.storage import Row, rows_of

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_UNFINISHED = ("RUNNING", "WAITING")


@dataclass(frozen=True)
class Wait:
    """No job now; there will be one when a running job is told."""


@dataclass(frozen=True)
class Done:
    """No job now or later."""


@dataclass(frozen=True, kw_only=True)
class _Live:
    """A trial between its first and last rung."""

    id: int
    number: int
    target: Target
    baseline: str | None
    recipe: Mapping[str, Any]
    seed: int


class Controller:
    """Asks, decides at rungs, tells. See the module."""

    def __init__(
        self,
        config: StudyConfig,
        space: Space,
        items: Items,
        storage: BaseStorage,
        *,
        listen: events.Listener = events.ignore,
        test: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the study in the storage, or go on with it.

        test: whether finished models of the front and baselines are evaluated on the test split at the end.
        """
        self.config = config
        self._listen, self._test = listen, test
        self._storage = storage
        self._study = _open_study(config, storage)
        past = rows_of(storage, self._study)
        self._asker = _make_asker(config, storage, past)
        self._planner = Planner(config, space, items, self._asker)
        self._spending = Spending(config.budget, clock)
        self._live: dict[int, _Live] = {}
        self._jobs = JobQueue()
        self._rungs = Rungs(config)
        self._front = GrowingFront(config.objectives)
        self._tests_given = self._over = False
        self._restore(past)

    def record_base(self, metrics: Mapping[str, float], owner: str | None = None) -> None:
        """Note what the base model measures, for reports, and which run folder the study belongs to."""
        self._set_study(records.BASE, dict(metrics))
        if owner is not None:
            self._set_study(records.RUN, owner)

    def next_job(self) -> Job | Wait | Done:
        """Return the next job for a free worker."""
        if self._spending.time_is_up():
            self._stop_ready_trials()
        if not self._jobs.ready and self._budget_left():
            self._begin_trial()
        if not self._jobs.ready and not self._jobs.runs:
            self._give_tests()
        job = self._jobs.take()
        if job is not None:
            return job
        return Wait() if self._jobs.runs else self._finish()

    def has_work(self) -> bool:
        """Tell whether there is any job; without one, workers need not be started. Says so when the study is over."""
        if not self._jobs.ready and not self._budget_left():
            self._give_tests()
        if self._jobs.ready or self._budget_left():
            return True
        self._finish()
        return False

    def started(self, job: Job) -> None:
        """Note that a worker has begun a job."""
        self._listen(events.JobStarted(trial=job.trial, kind=job.kind, rung=job.rung))

    def tell(self, job: Job, outcome: JobResult | JobFailure) -> None:
        """Record what came of a job. A job that is not running is not recorded again."""
        if not self._jobs.finish(job):
            return
        if isinstance(outcome, JobFailure):
            self._failed(job, outcome)
        elif job.kind == "test":
            self._set_study(f"{records.TEST}{job.trial}", dict(outcome.metrics))
            self._listen(events.Tested(trial=job.trial, metrics=outcome.metrics))
        else:
            self._rung_done(job, outcome)

    # --- results

    def _rung_done(self, job: Job, result: JobResult) -> None:
        live, top = self._live[job.trial], job.rung == self.config.rungs.top
        try:
            point = self._rungs.point(live.number, live.target, result.metrics, live.baseline is not None)
            values = objectives.values(self.config.objectives, result.metrics) if top else None
        except AutopruneError as error:
            self._fail(live, job.rung, type(error).__name__, str(error))
            return
        promoted = self._rungs.promote(job.rung, point)
        # one write holds the result and the decision, so that a resumed study never decides twice
        self._spending.work(result.cost.get("seconds", 0.0))
        at = round(self._spending.elapsed, 3)
        noted = {"promoted": promoted, "at": at}
        self._set(live.id, f"{records.RUNG}{job.rung}", result.plain() | noted)
        self._listen(
            events.RungDone(
                trial=job.trial,
                rung=job.rung,
                target=target_label(live.target),
                baseline=live.baseline,
                metrics=result.metrics,
                promoted=promoted,
            )
        )
        if promoted:
            self._jobs.add(self._job(live, job.rung + 1))
        else:
            self._end(live, values, result.metrics, at)

    def _failed(self, job: Job, failure: JobFailure) -> None:
        again = self._jobs.again(job, failure, self.config.executor.max_failures)
        if again is not None:
            message = failure.message
            self._listen(events.JobRetried(trial=job.trial, rung=job.rung, attempt=again.attempt, message=message))
        elif job.kind == "test":
            self._listen(events.Warned(message=f"trial {job.trial} could not be tested: {failure.message}"))
        else:
            self._fail(self._live[job.trial], job.rung, failure.kind, failure.message)

    def _end(self, live: _Live, values: Sequence[float] | None, metrics: Mapping[str, float], at: float) -> None:
        """Tell Optuna: COMPLETE with values, PRUNED without. at: when the result came, seconds of the study."""
        self._close(live, TrialState.PRUNED if values is None else TrialState.COMPLETE, values)
        if self._front.add(metrics if values is not None else None, counts=live.baseline is None):
            self._spending.front_moved_at = at
        self._listen(
            events.TrialDone(
                trial=live.number,
                state="stopped" if values is None else "done",
                target=target_label(live.target),
                baseline=live.baseline,
                metrics=metrics,
            )
        )

    def _fail(self, live: _Live, rung: int, kind: str, message: str) -> None:
        self._set(live.id, records.ERROR, {"kind": kind, "message": message})
        self._close(live, TrialState.FAIL, None)
        self._listen(events.TrialFailed(trial=live.number, rung=rung, kind=kind, message=message))

    def _close(self, live: _Live, state: TrialState, values: Sequence[float] | None) -> None:
        self._storage.set_trial_state_values(live.id, state, values)
        self._asker.tell(live.number, state, values)
        self._live.pop(live.number, None)

    # --- new trials

    def _begin_trial(self) -> None:
        """Ask for trials until one has a job, or the budget is used up."""
        while not self._jobs.ready and self._budget_left():
            draft = self._planner.next()
            live = self._record(draft)
            if draft.error is not None:
                self._fail(live, 0, type(draft.error).__name__, str(draft.error))
            else:
                self._enter(live, rung=0)

    def _record(self, draft: Draft) -> _Live:
        """Write a trial into the storage, whole, so that it is either there with its recipe or not there."""
        plan, seed = draft.plan, derive_seed(self.config.seed, "trial", self._planner.recorded)
        template = copy.copy(self._asker.drawn(draft.trial))
        template.user_attrs = {records.TARGET: plan.target.model_dump(), records.SEED: seed}
        if plan.baseline is not None:
            template.user_attrs[records.BASELINE] = plan.baseline.name
        if plan.warm_start is not None:
            template.user_attrs[records.WARM] = plan.warm_start
        if draft.recipe is not None:
            template.user_attrs[records.RECIPE] = dict(draft.recipe)
        made = self._storage.create_new_trial(self._study, template_trial=template)
        number = self._storage.get_trial_number_from_id(made)
        record = records.read_trial(
            Row(id=made, number=number, state="RUNNING", attributes=template.user_attrs, seconds=None)
        )
        self._asker.keep(draft.trial, record.number)
        self._planner.count(record)
        return _live(made, record)

    def _enter(self, live: _Live, rung: int) -> None:
        self._live[live.number] = live
        self._jobs.add(self._job(live, rung))
        self._listen(
            events.TrialStarted(
                trial=live.number,
                target=target_label(live.target),
                baseline=live.baseline,
                recipe=live.recipe,
                rung=rung,
            )
        )

    def _job(self, live: _Live, rung: int) -> Job:
        return Job(
            trial=live.number,
            rung=rung,
            recipe=live.recipe,
            seed=live.seed,
            epochs=self.config.rungs.trained(rung),
            samples=self.config.rungs.samples(rung),
            latency="latency" in self.config.objectives,
            finished=rung == self.config.rungs.top or objectives.need_finished(self.config.objectives),
        )

    # --- budget and end

    def _budget_left(self) -> bool:
        return (
            self._planner.recorded < self.config.budget.trials
            and not self._patience_is_over()
            and not self._spending.time_is_up()
        )

    def _patience_is_over(self) -> bool:
        """Tell whether the front has stood still for too long; never while the baselines are missing."""
        return not self._planner.baselines_missing and self._spending.patience_is_over(self._front.unmoved)

    def _stop_ready_trials(self) -> None:
        """End the trials that wait for a worker when the time is up; a job that runs is waited for."""
        for job in self._jobs.drop("rung"):
            live = self._live[job.trial]
            self._set(live.id, records.STOPPED_BY, "time")
            self._end(live, None, {}, self._spending.front_moved_at)

    def _give_tests(self) -> None:
        """Queue the test of every model that will be reported: front, best at each target, baselines."""
        if not self._test or self._tests_given:
            return
        self._tests_given = True
        trials = [record for record in self._records() if record.state == "done"]
        chosen = worth_keeping([Finished.of(trial) for trial in trials], self.config.objectives)
        tested = self._study_attributes()
        for trial in trials:
            if trial.number in chosen and f"{records.TEST}{trial.number}" not in tested:
                self._jobs.add(self._test_job(trial))

    def _test_job(self, trial: records.TrialRecord) -> Job:
        return Job(
            trial=trial.number,
            rung=self.config.rungs.top,
            recipe=trial.recipe or {},
            seed=trial.seed or 0,
            epochs=0.0,
            samples=None,
            kind="test",
        )

    def _finish(self) -> Done:
        if not self._over:
            self._over = True
            states = [record.state for record in self._records()]
            self._listen(
                events.StudyDone(
                    done=states.count("done"),
                    stopped=states.count("stopped"),
                    failed=states.count("failed"),
                    seconds=self._spending.elapsed,
                )
            )
        return Done()

    # --- resuming

    def _restore(self, past: Sequence[Row]) -> None:
        """Take up what the storage holds: the rung table, and trials that were in the middle."""
        unfinished, over = [], list[records.TrialRecord]()
        for row in past:
            record = records.read_trial(row)
            self._planner.count(record)
            for rung in record.rungs:
                point = self._rungs.point(record.number, record.target, rung.metrics, record.baseline is not None)
                self._rungs.add(rung.rung, point, rung.promoted)
                self._spending.ran_until(rung.at)
            self._spending.work(record.cost.get("seconds", 0.0))
            if record.state == "running":
                unfinished.append((row.id, record))
            else:
                over.append(record)
        for record in sorted(over, key=lambda r: r.rungs[-1].at if r.rungs else 0.0):
            if self._front.add(record.metrics if record.state == "done" else None, counts=record.baseline is None):
                self._spending.front_moved_at = record.rungs[-1].at
        self._announce(len(unfinished))
        for trial_id, record in unfinished:
            self._continue(_live(trial_id, record), record)

    def _continue(self, live: _Live, record: records.TrialRecord) -> None:
        """Go on with a trial. What was decided but not told any more is told now."""
        last = record.rungs[-1] if record.rungs else None
        if record.error is not None or record.recipe is None:
            self._close(live, TrialState.FAIL, None)
        elif record.stopped_by is not None:
            self._end(live, None, record.metrics, self._spending.front_moved_at)
        elif last is None:
            self._enter(live, rung=0)
        elif last.promoted:
            self._enter(live, rung=last.rung + 1)
        else:
            top = last.rung == self.config.rungs.top
            values = objectives.values(self.config.objectives, last.metrics) if top else None
            self._end(live, values, last.metrics, last.at)

    def _announce(self, continued: int) -> None:
        needed = self._planner.baselines
        if self.config.budget.trials < needed:
            self._listen(
                events.Warned(
                    message=f"the budget of {self.config.budget.trials} trials is less than the {needed} baselines; "
                    "nothing will be searched"
                )
            )
        self._listen(
            events.StudyStarted(
                name=self.config.name,
                trials=self.config.budget.trials,
                rungs=self.config.rungs.epochs,
                targets=tuple(target_label(t) for t in self.config.targets),
                finished=self._planner.recorded - continued,
                continued=continued,
            )
        )

    # --- storage

    def _records(self) -> list[records.TrialRecord]:
        return [records.read_trial(row) for row in rows_of(self._storage, self._study)]

    def _study_attributes(self) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(self._study)

    def _set_study(self, key: str, value: Any) -> None:
        self._storage.set_study_user_attr(self._study, key, value)

    def _set(self, trial_id: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial_id, key, value)


def _live(trial_id: int, record: records.TrialRecord) -> _Live:
    return _Live(
        id=trial_id,
        number=record.number,
        target=record.target,
        baseline=record.baseline,
        recipe=record.recipe or {},
        seed=record.seed or 0,
    )


def _open_study(config: StudyConfig, storage: BaseStorage) -> int:
    """Return the id of the study in the storage, made if it is not there."""
    directions = objectives.directions(config.objectives)
    study = optuna.create_study(storage=storage, study_name=config.name, directions=directions, load_if_exists=True)
    return study._study_id


def _make_asker(config: StudyConfig, storage: BaseStorage, past: Sequence[Row]) -> Asker:
    sampler = build_sampler(
        config.sampler.name,
        seed=config.seed,
        finished=sum(row.state not in _UNFINISHED for row in past),
        budget=config.budget.trials,
        startup=config.sampler.startup,
    )
    return Asker(objectives.directions(config.objectives), sampler, [storage.get_trial(row.id) for row in past])
