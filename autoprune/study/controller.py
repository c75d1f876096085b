"""The controller decides what is run next and keeps the record. Only it writes to the storage.

Executors call `next_job`, `started` and `tell`, from one thread. Optuna is asked for draws and told once per trial:
COMPLETE at the top rung with the objectives' values, PRUNED for a stopped trial, FAIL for a failed one. A trial stays
RUNNING in the storage between its rungs; its state is then its last rung's record and the artefact in its folder, so a
study whose driver was killed goes on from there.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from autoprune.errors import AutopruneError
from autoprune.recipe import Target
from autoprune.search import objectives, stopper
from autoprune.search.baselines import Baseline, build_baselines
from autoprune.search.nodes import Items
from autoprune.search.samplers import build_sampler
from autoprune.search.space import Space
from autoprune.seeds import derive_seed
from autoprune.study import events, records
from autoprune.study.config import StudyConfig, target_label
from autoprune.study.jobs import Job, JobFailure, JobResult

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_DUPLICATES_IN_A_ROW = 3


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


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the next trial is to be."""

    target: Target
    baseline: Baseline | None


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
        self._space, self._items, self._listen, self._test = space, items, listen, test
        self._baselines = build_baselines(config.baselines)
        self._storage = storage
        self._study = _open_study(config, storage)
        self._clock, self._began = clock, clock()
        self._elapsed_before: float = self._study.user_attrs.get(records.ELAPSED, 0.0)
        self._live: dict[int, _Live] = {}
        self._ready: deque[Job] = deque()
        self._running: dict[tuple[int, str, int], Job] = {}
        self._points: dict[int, list[stopper.Point]] = {}
        self._seen: dict[str, int] = {}
        self._used: set[int] = set()
        self._planned: set[tuple[str, str]] = set()
        self._duplicates_in_a_row = self._left_waiting = 0
        self._tests_given = self._over = False
        self._restore()

    def record_base(self, metrics: Mapping[str, float]) -> None:
        """Note what the base model measures, for reports."""
        self._set_study(records.BASE, dict(metrics))

    def next_job(self) -> Job | Wait | Done:
        """Return the next job for a free worker."""
        if self._time_is_up():
            self._stop_ready_trials()
        if not self._ready and self._budget_left():
            self._begin_trial()
        if not self._ready and not self._running:
            self._give_tests()
        if self._ready:
            job = self._ready.popleft()
            self._running[job.key] = job
            return job
        return Wait() if self._running else self._finish()

    def started(self, job: Job) -> None:
        """Note that a worker has begun a job."""
        self._listen(events.JobStarted(trial=job.trial, kind=job.kind, rung=job.rung))

    def tell(self, job: Job, outcome: JobResult | JobFailure) -> None:
        """Record what came of a job. A job that is not running is not recorded again."""
        if self._running.pop(job.key, None) is None:
            return
        if isinstance(outcome, JobFailure):
            self._failed(job, outcome)
        elif job.kind == "test":
            self._set_study(f"{records.TEST}{job.trial}", dict(outcome.metrics))
            self._listen(events.Tested(trial=job.trial, metrics=outcome.metrics))
        else:
            self._rung_done(job, outcome)
        self._set_study(records.ELAPSED, self._elapsed())

    # --- results

    def _rung_done(self, job: Job, result: JobResult) -> None:
        live, top = self._live[job.trial], job.rung == self.config.rungs.top
        try:
            point = self._point(live, result.metrics)
            values = objectives.values(self.config.objectives, result.metrics) if top else None
        except AutopruneError as error:
            self._fail(live, job.rung, type(error).__name__, str(error))
            return
        others = self._points.setdefault(job.rung, [])
        promoted = not top and stopper.goes_up(point, others, self.config.rungs.reduction)
        others.append(point)
        # one write holds the result and the decision, so that a resumed study never decides twice
        self._set(live.id, f"{records.RUNG}{job.rung}", result.plain() | {"promoted": promoted})
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
            self._ready.append(self._job(live, job.rung + 1))
        else:
            self._end(live, values, result.metrics)

    def _failed(self, job: Job, failure: JobFailure) -> None:
        if failure.lost and job.attempt < self.config.executor.max_failures:
            again = replace(job, attempt=job.attempt + 1)
            self._ready.appendleft(again)
            message = failure.message
            self._listen(
                events.JobRetried(trial=job.trial, rung=job.rung, attempt=again.attempt, message=message)
            )
        elif job.kind == "test":
            self._listen(events.Warned(message=f"trial {job.trial} could not be tested: {failure.message}"))
        else:
            self._fail(self._live[job.trial], job.rung, failure.kind, failure.message)

    def _end(self, live: _Live, values: Sequence[float] | None, metrics: Mapping[str, float]) -> None:
        """Tell Optuna: COMPLETE with values, PRUNED without."""
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        self._study.tell(live.number, values=values, state=state)
        del self._live[live.number]
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
        self._live.pop(live.number, None)
        self._tell_failed(live.id, live.number, kind, message)
        self._listen(events.TrialFailed(trial=live.number, rung=rung, kind=kind, message=message))

    def _tell_failed(self, trial_id: int, number: int, kind: str, message: str) -> None:
        self._set(trial_id, records.ERROR_KIND, kind)
        self._set(trial_id, records.ERROR, message)
        self._study.tell(number, state=TrialState.FAIL)

    def _point(self, live: _Live, metrics: Mapping[str, float]) -> stopper.Point:
        accuracy, *_ = objectives.values(["accuracy"], metrics)
        costs = [name for name in self.config.objectives if name != "accuracy"]
        pinned = {"flops": live.target.flops_fraction, "params": live.target.params_fraction}
        return stopper.Point(
            trial=live.number,
            accuracy=accuracy,
            costs=dict(zip(costs, objectives.values(costs, metrics), strict=True)),
            pinned={name: value for name, value in pinned.items() if value is not None},
            baseline=live.baseline is not None,
        )

    # --- new trials

    def _begin_trial(self) -> None:
        """Ask for trials until one has a job, or the budget is used up."""
        while not self._ready and self._budget_left():
            if self._left_waiting:
                # enqueued by a driver that was killed before it asked
                self._left_waiting -= 1
            else:
                self._enqueue(self._plan())
            self._give_recipe(self._study.ask())

    def _plan(self) -> _Plan:
        for baseline in self._baselines:
            for target in self.config.targets:
                if (baseline.name, target_label(target)) not in self._planned:
                    return _Plan(target=target, baseline=baseline)
        searched = len(self._used) - len(self._planned)
        return _Plan(target=self.config.targets[searched % len(self.config.targets)], baseline=None)

    def _enqueue(self, plan: _Plan) -> None:
        """Put the plan into the storage first: if we are killed now, the trial is still what it was to be."""
        params: dict[str, Any] = {"target": target_label(plan.target)}
        if plan.baseline is not None:
            params |= self._space.encode(plan.baseline.recipe, self._items) or {}
        attributes: dict[str, Any] = {records.TARGET: plan.target.model_dump()}
        if plan.baseline is not None:
            attributes[records.BASELINE] = plan.baseline.name
        self._study.enqueue_trial(params, user_attrs=attributes)

    def _give_recipe(self, trial: Trial) -> None:
        """Draw the recipe of a fresh trial and make its first job."""
        attributes = trial.user_attrs
        target = Target.model_validate(attributes[records.TARGET])
        name = attributes.get(records.BASELINE)
        self._count(trial.number, name, target)
        try:
            recipe = self._draw(trial, target, name)
        except AutopruneError as error:
            self._tell_failed(trial._trial_id, trial.number, type(error).__name__, str(error))
            self._listen(
                events.TrialFailed(trial=trial.number, rung=0, kind=type(error).__name__, message=str(error))
            )
            return
        if name is None and self._is_duplicate(trial, recipe):
            return
        live = _Live(
            id=trial._trial_id,
            number=trial.number,
            target=target,
            baseline=name,
            recipe=recipe,
            seed=derive_seed(self.config.seed, "trial", trial.number),
        )
        self._seen[_key(recipe)] = trial.number
        self._set(live.id, records.SEED, live.seed)
        self._set(live.id, records.RECIPE, dict(recipe))
        self._enter(live, rung=0)

    def _draw(self, trial: Trial, target: Target, baseline: str | None) -> dict[str, Any]:
        trial.suggest_categorical("target", [target_label(t) for t in self.config.targets])
        if baseline is None:
            recipe = self._space.suggest(trial, self._items)
        else:
            recipe = next(b.recipe for b in self._baselines if b.name == baseline)
            if self._space.encode(recipe, self._items) is not None:
                # the draws are fixed; taking them makes the baseline a point that the sampler learns from
                self._space.suggest(trial, self._items)
        return recipe.model_copy(update={"target": target}).plain()

    def _is_duplicate(self, trial: Trial, recipe: Mapping[str, Any]) -> bool:
        """Drop a recipe that was there before. After some in a row it runs again: the space may be used up."""
        twin = self._seen.get(_key(recipe))
        if twin is None or self._duplicates_in_a_row >= _DUPLICATES_IN_A_ROW:
            self._duplicates_in_a_row = 0
            return False
        self._duplicates_in_a_row += 1
        self._used.discard(trial.number)
        self._set(trial._trial_id, records.DUPLICATE_OF, twin)
        self._study.tell(trial.number, state=TrialState.FAIL)
        return True

    def _enter(self, live: _Live, rung: int) -> None:
        self._live[live.number] = live
        self._ready.append(self._job(live, rung))
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
        )

    # --- budget and end

    def _budget_left(self) -> bool:
        return len(self._used) < self.config.budget.trials and not self._time_is_up()

    def _elapsed(self) -> float:
        return self._elapsed_before + self._clock() - self._began

    def _time_is_up(self) -> bool:
        return self.config.budget.time is not None and self._elapsed() >= self.config.budget.time

    def _stop_ready_trials(self) -> None:
        """End the trials that wait for a worker when the time is up; a job that runs is waited for."""
        stopped = [job for job in self._ready if job.kind == "rung"]
        self._ready = deque(job for job in self._ready if job.kind != "rung")
        for job in stopped:
            live = self._live[job.trial]
            self._set(live.id, records.STOPPED_BY, "time")
            self._end(live, None, {})

    def _give_tests(self) -> None:
        """Queue the test of every model that will be reported: front, best at each target, baselines."""
        if not self._test or self._tests_given:
            return
        self._tests_given = True
        trials = [records.read_trial(t) for t in self._trials() if t.state is TrialState.COMPLETE]
        fronts = stopper.front_numbers([self._losses(t) for t in trials])
        chosen = {t.number for t, front in zip(trials, fronts, strict=True) if front == 0 or t.baseline}
        for target in {t.target_label for t in trials}:
            here = [t for t in trials if t.target_label == target]
            chosen.add(max(here, key=lambda t: (t.value("accuracy"), -t.number)).number)
        tested = self._study.user_attrs
        for trial in trials:
            if trial.number in chosen and f"{records.TEST}{trial.number}" not in tested:
                self._ready.append(self._test_job(trial))

    def _losses(self, trial: records.TrialRecord) -> tuple[float, ...]:
        signs = {"maximize": -1.0, "minimize": 1.0}
        ways = objectives.directions(self.config.objectives)
        values = objectives.values(self.config.objectives, trial.metrics)
        return tuple(signs[way] * value for way, value in zip(ways, values, strict=True))

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
            states = [records.read_trial(t).state for t in self._trials()]
            self._listen(
                events.StudyDone(
                    done=states.count("done"),
                    stopped=states.count("stopped"),
                    failed=states.count("failed"),
                    seconds=self._elapsed(),
                )
            )
        return Done()

    # --- resuming

    def _restore(self) -> None:
        """Take up what the storage holds: the rung table, and trials that were in the middle."""
        unfinished = []
        for trial in self._trials():
            record = records.read_trial(trial)
            if record.state == "duplicate":
                self._close_duplicate(trial)
                continue
            if record.state == "waiting":
                self._left_waiting += 1
                continue
            self._count(record.number, record.baseline, record.target)
            if record.recipe is not None:
                self._seen[_key(record.recipe)] = record.number
                self._restore_points(record)
            if record.state == "running":
                unfinished.append((trial, record))
        self._announce(len(unfinished))
        for trial, record in unfinished:
            self._continue(trial, record)

    def _restore_points(self, record: records.TrialRecord) -> None:
        live = _live(0, record)
        for rung in record.rungs:
            self._points.setdefault(rung.rung, []).append(self._point(live, rung.metrics))

    def _continue(self, trial: FrozenTrial, record: records.TrialRecord) -> None:
        """Go on with a trial. What was recorded but not told to Optuna any more is told now.

        A trial without a recipe gets one; draws that are already in the storage stay.
        """
        if record.recipe is None and record.error is None:
            self._give_recipe(optuna.Trial(self._study, trial._trial_id))
            return
        live = _live(trial._trial_id, record)
        if record.error is not None:
            self._study.tell(record.number, state=TrialState.FAIL)
        elif record.stopped_by is not None:
            self._live[live.number] = live
            self._end(live, None, record.metrics)
        elif not record.rungs:
            self._enter(live, rung=0)
        elif record.rungs[-1].promoted:
            self._enter(live, rung=record.rungs[-1].rung + 1)
        else:
            # the decision was recorded, but Optuna was not told any more
            self._live[live.number] = live
            top = record.rungs[-1].rung == self.config.rungs.top
            values = objectives.values(self.config.objectives, record.metrics) if top else None
            self._end(live, values, record.metrics)

    def _close_duplicate(self, trial: FrozenTrial) -> None:
        if trial.state is TrialState.RUNNING:
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _announce(self, continued: int) -> None:
        needed = len(self._baselines) * len(self.config.targets)
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
                finished=len(self._used) - continued,
                continued=continued,
            )
        )

    # --- storage

    def _count(self, number: int, baseline: str | None, target: Target) -> None:
        self._used.add(number)
        if baseline is not None:
            self._planned.add((baseline, target_label(target)))

    def _trials(self) -> list[FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False))

    def _set_study(self, key: str, value: Any) -> None:
        self._storage.set_study_user_attr(self._study._study_id, key, value)

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


def _key(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, sort_keys=True)


def _open_study(config: StudyConfig, storage: BaseStorage) -> Study:
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        directions=objectives.directions(config.objectives),
        load_if_exists=True,
    )
    finished = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
    study.sampler = build_sampler(
        config.sampler.name,
        seed=config.seed,
        finished=finished,
        budget=config.budget.trials,
        startup=config.sampler.startup,
    )
    return study
