"""What a running study shows: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoprune.report.tables import duration
from autoprune.study import events
from autoprune.study.config import StudyConfig, target_label

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Listener = Callable[[events.Event], None]
_REFRESH_PER_SECOND = 4
_RUNNING_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best finished trial of a target."""

    name: str
    accuracy: float


@dataclass
class Progress:
    """What is known of a running study, kept up to date by its events."""

    planned: int
    targets: tuple[str, ...]
    top: int
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0
    step: str = "starting"
    step_done: int = 0
    step_total: int = 0
    over: int = 0
    over_before: int = 0
    stopped: int = 0
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    running: dict[int, str] = field(default_factory=dict)
    best: dict[str, Best] = field(default_factory=dict)
    started: bool = False

    def see(self, event: events.Event) -> None:
        """Take up an event."""
        match event:
            case events.Preparing():
                self.step = f"{event.step} {event.detail}".strip()
                self.step_done, self.step_total = event.done, event.total
            case events.StudyStarted():
                self.started, self.began = True, self.clock()
                self.over = self.over_before = event.finished
            case events.TrialStarted() | events.JobStarted() | events.RungDone():
                self._see_running(event)
            case events.TrialDone():
                self._see_done(event)
            case events.TrialFailed():
                self.running.pop(event.trial, None)
                self.over += 1
                self.failures.append(f"trial {event.trial}, rung {event.rung}: {event.kind}: {event.message}")
            case events.JobRetried():
                self.warnings.append(f"trial {event.trial} runs again: {event.message}")
            case events.Warned():
                self.warnings.append(event.message)
            case events.Tested():
                self.running.pop(event.trial, None)
            case _:
                pass

    def remaining(self) -> float | None:
        """Return the expected seconds until the end, None before a trial is over."""
        done = self.over - self.over_before
        if done <= 0:
            return None
        return (self.clock() - self.began) / done * max(0, self.planned - self.over)

    def _see_running(self, event: events.TrialStarted | events.JobStarted | events.RungDone) -> None:
        match event:
            case events.TrialStarted():
                self.running[event.trial] = f"{_name(event.trial, event.baseline)}, {event.target}"
            case events.JobStarted():
                what = "test" if event.kind == "test" else f"rung {event.rung} of {self.top}"
                known = self.running.get(event.trial, f"trial {event.trial}").split(": ")[0]
                self.running[event.trial] = f"{known}: {what}"
            case events.RungDone():
                known = self.running.get(event.trial, f"trial {event.trial}").split(": ")[0]
                found = f"rung {event.rung} of {self.top} {100 * event.metrics['accuracy']:.1f} %"
                self.running[event.trial] = f"{known}: {found}"

    def _see_done(self, event: events.TrialDone) -> None:
        self.running.pop(event.trial, None)
        self.over += 1
        if event.state != "done":
            self.stopped += 1
            return
        accuracy = event.metrics["accuracy"]
        best = self.best.get(event.target)
        if best is None or accuracy > best.accuracy:
            self.best[event.target] = Best(name=_name(event.trial, event.baseline), accuracy=accuracy)


@contextlib.contextmanager
def following(console: Console, config: StudyConfig) -> Iterator[Listener]:
    """Yield a listener that shows a study's events on a console."""
    progress = Progress(
        planned=config.budget.trials, targets=tuple(target_label(t) for t in config.targets), top=config.rungs.top
    )
    if not console.is_terminal:
        yield Lines(console).following(progress)
        return
    from rich.live import Live

    # drawn again several times a second, so that time goes on between events
    with Live(
        get_renderable=lambda: panel(progress),
        console=console,
        refresh_per_second=_REFRESH_PER_SECOND,
        transient=True,
    ):
        yield progress.see


@dataclass
class Lines:
    """One plain line for everything worth knowing, for logs and pipes."""

    console: Console
    last_step: str = ""

    def following(self, progress: Progress) -> Listener:
        """Return a listener that keeps the progress up to date and prints."""

        def listen(event: events.Event) -> None:
            progress.see(event)
            self.show(progress, event)

        return listen

    def show(self, progress: Progress, event: events.Event) -> None:
        """Print the event's line, if it has one."""
        line = self._line(progress, event)
        if line is not None:
            self.console.print(line, markup=False, soft_wrap=True)

    def _line(self, progress: Progress, event: events.Event) -> str | None:
        count = f"[{progress.over}/{progress.planned}]"
        match event:
            case events.Preparing():
                return self._step(event)
            case events.StudyStarted():
                resumed = f", {event.finished} finished before" if event.finished else ""
                return f"{event.trials} trials, targets {', '.join(event.targets)}{resumed}"
            case events.TrialDone():
                name = f"{_name(event.trial, event.baseline)}, {event.target}"
                if event.state != "done":
                    return f"{count} {name}: stopped"
                return f"{count} {name}: done, accuracy {100 * event.metrics['accuracy']:.2f} %"
            case events.TrialFailed():
                return f"{count} trial {event.trial} failed at rung {event.rung}: {event.kind}: {event.message}"
            case events.JobRetried():
                return f"trial {event.trial} runs again (attempt {event.attempt}): {event.message}"
            case events.Polished():
                accuracy = f"accuracy {100 * event.metrics['accuracy']:.2f} %"
                return f"[{event.done}/{event.total}] trial {event.trial}, training {event.repeat}: {accuracy}"
            case events.Warned():
                return f"Warning: {event.message}"
            case events.StudyDone():
                return f"{event.done} done, {event.stopped} stopped, {event.failed} failed in {duration(event.seconds)}"
        return None

    def _step(self, event: events.Preparing) -> str | None:
        # training reports several times a second; one line for each step is enough in a log
        if event.step == self.last_step:
            return None
        self.last_step = event.step
        return f"preparing: {event.step} {event.detail}".rstrip()


def panel(progress: Progress) -> RenderableType:
    """Return the live display: progress, the best of each target, running trials, failures."""
    from rich.console import Group
    from rich.text import Text

    if not progress.started:
        return Group(Text(f"Preparing: {progress.step}"), *_bar(progress.step_done, progress.step_total))
    parts: list[RenderableType] = [Text(_headline(progress)), *_bar(progress.over, progress.planned)]
    parts += [Text(line) for line in _best_lines(progress)]
    running = list(progress.running.values()) or ["waiting for workers"]
    parts += [Text(f"  running  {line}", style="cyan") for line in running[:_RUNNING_SHOWN]]
    if len(running) > _RUNNING_SHOWN:
        parts.append(Text(f"  and {len(running) - _RUNNING_SHOWN} more"))
    parts += [Text(f"  failed   {line}", style="red", overflow="ellipsis") for line in progress.failures[-3:]]
    parts += [Text(f"  warning  {line}", style="yellow") for line in progress.warnings[-2:]]
    return Group(*parts)


def _headline(progress: Progress) -> str:
    left = progress.remaining()
    remaining = "" if left is None else f", about {duration(left)} left"
    elapsed = duration(progress.clock() - progress.began)
    counts = f"{progress.stopped} stopped early, {len(progress.failures)} failed"
    return f"{progress.over} of {progress.planned} trials, {counts}; {elapsed}{remaining}"


def _best_lines(progress: Progress) -> list[str]:
    width = max((len(t) for t in progress.targets), default=0)
    lines = []
    for target in progress.targets:
        best = progress.best.get(target)
        told = "-" if best is None else f"{100 * best.accuracy:.2f} %  {best.name}"
        lines.append(f"  best at {target:<{width}}  {told}")
    return lines


def _bar(done: int, total: int) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar

    return [ProgressBar(total=total, completed=min(done, total), width=60)] if total else []


def _name(trial: int, baseline: str | None) -> str:
    return f"trial {trial}" if baseline is None else f"trial {trial} ({baseline})"
