"""What a study keeps on disk: the weights of running trials and of those that anybody will want."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from autoprune.search.front import losses
from autoprune.search.stopper import front_numbers
from autoprune.study import events
from autoprune.study.config import StudyConfig
from autoprune.study.records import TrialRecord, read_study
from autoprune.study.run_folder import RunFolder


@dataclass(frozen=True)
class Finished:
    """What of a finished trial decides whether its weights stay. target: its short name."""

    number: int
    metrics: Mapping[str, float]
    target: str
    baseline: str | None

    @classmethod
    def of(cls, trial: TrialRecord) -> Finished:
        """Return it for a record."""
        return cls(trial.number, trial.metrics, trial.target_label, trial.baseline)


def worth_keeping(done: Sequence[Finished], objectives: Sequence[str]) -> set[int]:
    """Return the numbers of finished trials on the front, best at their target, or baselines."""
    fronts = front_numbers([losses(objectives, t.metrics) for t in done])
    chosen = {t.number for t, front in zip(done, fronts, strict=True) if front == 0 or t.baseline}
    best: dict[str, int] = {}
    for trial in sorted(done, key=lambda t: (t.metrics["accuracy"], -t.number)):
        best[trial.target] = trial.number
    return chosen | set(best.values())


def size_of(run: RunFolder) -> int:
    """Return the bytes of all files in a run folder."""
    return sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())


class Keeper:
    """Hears what happens in a study and removes weights that nobody needs any more.

    What such a trial leaves is its recipe, its metrics and its manifest: the recipe can be run again.
    """

    def __init__(self, run: RunFolder, config: StudyConfig) -> None:
        self._run, self._config = run, config
        self._kept: list[Finished] = []

    def hear(self, event: events.Event) -> None:
        """Clean up after a trial that is over, and after a driver that died before it could."""
        if self._config.checkpoints == "all":
            return
        if isinstance(event, events.StudyStarted):
            trials = read_study(self._config, self._run.path).trials
            self._drop([t.number for t in trials if t.state in ("stopped", "failed")])
            self._take([Finished.of(t) for t in trials if t.state == "done"])
        elif isinstance(event, events.TrialDone) and event.state == "done":
            self._take([Finished(event.trial, event.metrics, event.target, event.baseline)])
        elif isinstance(event, events.TrialDone | events.TrialFailed):
            self._drop([event.trial])

    def _take(self, more: Sequence[Finished]) -> None:
        # what once was beaten is never wanted again
        done = [*self._kept, *more]
        wanted = worth_keeping(done, self._config.objectives)
        self._kept = [trial for trial in done if trial.number in wanted]
        self._drop([trial.number for trial in done if trial.number not in wanted])

    def _drop(self, numbers: Collection[int]) -> None:
        from autoprune.artefact import WEIGHTS
        from autoprune.export import QUANTISED

        for number in numbers:
            for name in (WEIGHTS, QUANTISED):
                (self._run.trial(number) / name).unlink(missing_ok=True)
