"""What happens during a study, as plain values, for the live display and for log.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened."""

    def plain(self) -> dict[str, Any]:
        """Return the event as JSON-able data; `event` is its kind."""
        return {"event": type(self).__name__} | asdict(self)


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""


@dataclass(frozen=True, kw_only=True)
class Preparing(Event):
    """A step before the first trial: `data`, `base`, `structure`, `evidence` ... done of total, where known."""

    step: str
    detail: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, kw_only=True)
class StudyStarted(Event):
    """Trials begin. `finished` of them are there from an earlier run, `continued` go on in the middle."""

    name: str
    trials: int
    rungs: tuple[float, ...]
    targets: tuple[str, ...]
    finished: int
    continued: int


@dataclass(frozen=True, kw_only=True)
class TrialStarted(Event):
    """A trial has its recipe. `rung` is above 0 when a resumed study goes on with it."""

    trial: int
    target: str
    baseline: str | None
    recipe: Mapping[str, Any]
    rung: int


@dataclass(frozen=True, kw_only=True)
class JobStarted(Event):
    """A worker has begun a rung, or the test, of a trial."""

    trial: int
    kind: str
    rung: int


@dataclass(frozen=True, kw_only=True)
class RungDone(Event):
    """A trial has finished a rung; promoted to the next, or not."""

    trial: int
    rung: int
    target: str
    baseline: str | None
    metrics: Mapping[str, float]
    promoted: bool


@dataclass(frozen=True, kw_only=True)
class TrialDone(Event):
    """A trial is over: done (top rung), stopped (by the stopper) or stopped by time."""

    trial: int
    state: str
    target: str
    baseline: str | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialFailed(Event):
    """A trial could not finish; the study goes on."""

    trial: int
    rung: int
    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class JobRetried(Event):
    """The worker of a job died; the job runs again."""

    trial: int
    rung: int
    attempt: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Tested(Event):
    """A model of the front, or a baseline, was evaluated on the test split."""

    trial: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Polished(Event):
    """A model of the front was trained longer; `done` of `total` such trainings are over."""

    trial: int
    repeat: int
    metrics: Mapping[str, float]
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something the user should know."""

    message: str


@dataclass(frozen=True, kw_only=True)
class StudyDone(Event):
    """Nothing is left to do."""

    done: int
    stopped: int
    failed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StudyInterrupted(Event):
    """The study was stopped from outside; launching it again goes on."""

    folder: str
