"""The study of record: an Optuna storage, and what is read from it.

Every trial's storage entry is complete in itself: recipe, target, seed, the result of every rung, the test result or
the error are user attributes. Only the controller writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from autoprune.errors import BadInput, MissingDependency, UnknownName
from autoprune.recipe import Recipe, Target
from autoprune.search.objectives import METRIC_OF
from autoprune.study.config import StudyConfig, expand, target_label

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from autoprune.study.storage import Row, Storage

State = Literal["waiting", "running", "done", "stopped", "failed"]

RECIPE, TARGET, BASELINE, SEED = "recipe", "target", "baseline", "seed"
# the place in the study's warm_start that a trial's recipe is from
WARM = "warm_start"
ERROR, STOPPED_BY = "error", "stopped_by"
RUNG = "rung_"
# of the study, because Optuna lets nobody add to a finished trial: test_<number> holds the test metrics of a trial
# and polish_<number>_<repeat> what its long last training gave
TEST, BASE, RUN, POLISH = "test_", "base", "run", "polish_"


@dataclass(frozen=True, kw_only=True)
class RungRecord:
    """What one rung of a trial found. at: seconds that the study had run by then, over all its drivers."""

    rung: int
    metrics: Mapping[str, float]
    cost: Mapping[str, float]
    promoted: bool
    at: float = 0.0
    amounts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PolishRecord:
    """What a long last training of a trial gave. repeat: 0 went on with its model, others began again, other seeds.

    metrics: of the whole validation split; test: of the test split, empty without one.
    """

    repeat: int
    epochs: float
    metrics: Mapping[str, float]
    test: Mapping[str, float]
    cost: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as it is recorded. `recipe` is plain data; None where drawing it failed."""

    number: int
    state: State
    target: Target
    baseline: str | None
    recipe: Mapping[str, Any] | None
    seed: int | None
    rungs: tuple[RungRecord, ...]
    test: Mapping[str, float] | None = None
    error: str | None = None
    error_kind: str | None = None
    stopped_by: str | None = None
    seconds: float | None = None
    polished: tuple[PolishRecord, ...] = ()
    warm_start: int | None = None

    @property
    def target_label(self) -> str:
        """The target's short name."""
        return target_label(self.target)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the last rung; empty before the first."""
        return self.rungs[-1].metrics if self.rungs else {}

    @property
    def cost(self) -> dict[str, float]:
        """Samples and seconds over all rungs."""
        names = sorted({name for rung in self.rungs for name in rung.cost})
        return {name: sum(rung.cost.get(name, 0.0) for rung in self.rungs) for name in names}

    def parsed(self) -> Recipe:
        """Return the recipe. Raises BadRecipe when it is of another version."""
        return Recipe.parse(self.recipe or {}, f"recipe of trial {self.number}")

    def value(self, objective: str) -> float:
        """Return an objective's value at the last rung. Raises KeyError where it was not measured."""
        return float(self.metrics[METRIC_OF[objective]])


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study as it stands. base: metrics of the base model, `flops`, `params`, `accuracy`, `test_accuracy` ..."""

    config: StudyConfig
    folder: Path
    trials: tuple[TrialRecord, ...]
    base: Mapping[str, float]
    seconds: float = 0.0

    def done(self) -> tuple[TrialRecord, ...]:
        """Return the trials that reached the top rung."""
        return tuple(t for t in self.trials if t.state == "done")


def storage_url(config: StudyConfig, folder: Path) -> str:
    """Return the URL of the study's storage, variables expanded."""
    if config.storage is None:
        return f"sqlite:///{(folder / 'study.db').absolute()}"
    return expand(config.storage, "storage")


@contextmanager
def opened(config: StudyConfig, folder: Path) -> Iterator[Storage]:
    """Open the study's storage, and close it in the end. Raises BadInput or MissingDependency."""
    storage = _open(storage_url(config, folder))
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open(url: str) -> Storage:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    from autoprune.study.storage import Storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        return Storage(url, engine_kwargs=waits)
    except ImportError as error:
        raise MissingDependency(
            f"the storage {_hidden(url)} needs a database driver: {error}. "
            "For PostgreSQL: pip install 'autoprune[postgres]' and postgresql+psycopg://..."
        ) from error
    except (SQLAlchemyError, ValueError) as error:
        reason = str(error).replace(url, _hidden(url)).splitlines()[0]
        raise BadInput(f"the storage {_hidden(url)} cannot be opened: {reason}") from error


def _hidden(url: str) -> str:
    """Return a URL without its password."""
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{user.split(':')[0]}:***@{host}" if at else url


def read_study(config: StudyConfig, folder: Path) -> StudyRecord:
    """Read a study's record. Raises UnknownName when the storage does not hold it."""
    if config.storage is None and not (folder / "study.db").exists():
        return StudyRecord(config=config, folder=folder, trials=(), base={})
    with opened(config, folder) as storage:
        return record_of(storage, config, folder)


def check_owner(storage: BaseStorage, config: StudyConfig, identity: str) -> None:
    """Refuse a study that another run folder keeps in the same storage. Raises BadInput."""
    try:
        owner = storage.get_study_user_attrs(storage.get_study_id_from_name(config.name)).get(RUN)
    except KeyError:
        return
    if owner not in (None, identity):
        raise BadInput(
            f"the storage holds a study named {config.name!r} that belongs to another run folder; "
            "give this study another name, or another storage"
        )


def record_of(storage: BaseStorage, config: StudyConfig, folder: Path) -> StudyRecord:
    """Return a study's record from an open storage. Raises UnknownName when it does not hold the study."""
    from autoprune.study.storage import rows_of

    try:
        study = storage.get_study_id_from_name(config.name)
    except KeyError:
        raise UnknownName(f"the storage holds no study named {config.name!r}") from None
    attributes = storage.get_study_user_attrs(study)
    trials = tuple(read_trial(row, attributes) for row in rows_of(storage, study))
    if any(name.startswith(POLISH) for name in attributes):
        trials = tuple(replace(trial, polished=_polished(trial.number, attributes)) for trial in trials)
    return StudyRecord(
        config=config,
        folder=folder,
        trials=trials,
        base=attributes.get(BASE, {}),
        seconds=max((rung.at for trial in trials for rung in trial.rungs), default=0.0),
    )


def read_trial(row: Row, study_attributes: Mapping[str, Any] = MappingProxyType({})) -> TrialRecord:
    """Return what the storage holds of a trial; its test result is among the study's attributes."""
    attributes = row.attributes
    return TrialRecord(
        number=row.number,
        state=_STATES[row.state],
        target=_target(**attributes.get(TARGET, {})),
        baseline=attributes.get(BASELINE),
        recipe=attributes.get(RECIPE),
        seed=attributes.get(SEED),
        rungs=tuple(_rungs(attributes)),
        test=study_attributes.get(f"{TEST}{row.number}"),
        error=attributes.get(ERROR, {}).get("message"),
        error_kind=attributes.get(ERROR, {}).get("kind"),
        stopped_by=attributes.get(STOPPED_BY),
        warm_start=attributes.get(WARM),
        seconds=row.seconds,
    )


def _polished(number: int, attributes: Mapping[str, Any]) -> tuple[PolishRecord, ...]:
    names = [name for name in attributes if name.startswith(f"{POLISH}{number}_")]
    found = [PolishRecord(**attributes[name]) for name in names]
    return tuple(sorted(found, key=lambda one: one.repeat))


@lru_cache
def _target(**fractions: float | None) -> Target:
    return Target(**fractions)


def _rungs(attributes: Mapping[str, Any]) -> Iterator[RungRecord]:
    numbers = sorted(int(key.removeprefix(RUNG)) for key in attributes if key.startswith(RUNG))
    for number in numbers:
        found = attributes[f"{RUNG}{number}"]
        yield RungRecord(
            rung=number,
            metrics=found["metrics"],
            cost=found["cost"],
            promoted=found["promoted"],
            at=found["at"],
            amounts=found.get("amounts", {}),
            notes=tuple(found.get("notes", ())),
        )


_STATES: Mapping[str, State] = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "done",
    "PRUNED": "stopped",
    "FAIL": "failed",
}
