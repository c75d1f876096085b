"""What a study keeps on disk: the weights of running trials and of those that anybody will want."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from autoprune.search.front import losses
from autoprune.search.stopper import front_numbers
from autoprune.study import events
from autoprune.study.config import StudyConfig
from autoprune.study.records import TrialRecord, read_study
from autoprune.study.run_folder import RunFolder

WEIGHTS = "model.safetensors"


def worth_keeping(done: Sequence[TrialRecord], objectives: Sequence[str]) -> set[int]:
    """Return the numbers of finished trials on the front, best at their target, or baselines."""
    fronts = front_numbers([losses(objectives, t.metrics) for t in done])
    chosen = {t.number for t, front in zip(done, fronts, strict=True) if front == 0 or t.baseline}
    best: dict[str, TrialRecord] = {}
    for trial in sorted(done, key=lambda t: (t.value("accuracy"), -t.number)):
        best[trial.target_label] = trial
    return chosen | {trial.number for trial in best.values()}


def size_of(run: RunFolder) -> int:
    """Return the bytes of all files in a run folder."""
    return sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())


class Keeper:
    """Hears what happens in a study and removes weights that nobody needs any more.

    What a trial that is over leaves is its recipe, its metrics and its manifest: the recipe can be run again.
    """

    def __init__(self, run: RunFolder, config: StudyConfig) -> None:
        self._run, self._config = run, config

    def hear(self, event: events.Event) -> None:
        """Clean up after a trial that is over."""
        if self._config.checkpoints == "all" or not isinstance(event, events.TrialDone | events.TrialFailed):
            return
        if isinstance(event, events.TrialDone) and event.state == "done":
            self._keep_the_best()
        else:
            self._drop([event.trial])

    def _keep_the_best(self) -> None:
        done = read_study(self._config, self._run.path).done()
        wanted = worth_keeping(done, self._config.objectives)
        self._drop([trial.number for trial in done if trial.number not in wanted])

    def _drop(self, numbers: Collection[int]) -> None:
        for number in numbers:
            (self._run.trial(number) / WEIGHTS).unlink(missing_ok=True)
