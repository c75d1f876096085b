"""Wall-clock times of several runs, interleaved, and the ratio of two of them with an interval.

Runs take turns in blocks, A B C A B C ..., so that whatever else the machine does falls on all of them alike. Calls
before the times have settled are left out. A series that scatters too much is thrown away and taken again; one that
still does is kept, marked as noisy. Times of one machine, thread count and back end compare with each other only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

Run = Callable[[], object]
Clock = Callable[[], float]
_RESAMPLES, _LEVEL = 1000, 0.95


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How times are taken. Of every run: at least `warm_up` calls go unmeasured, at most `most_warm_up`, until the last
    `settled_calls` differ by less than `settled` of the shortest; then at least `calls` and at least `seconds` are
    measured, in blocks of `block`, but no longer than `most_seconds`.

    noisy: a series whose 90th percentile is more than so many times its 10th is repeated, at most `retries` times.
    """

    warm_up: int = 10
    most_warm_up: int = 100
    settled: float = 0.1
    settled_calls: int = 5
    calls: int = 50
    seconds: float = 1.0
    most_seconds: float = 10.0
    block: int = 5
    noisy: float = 1.5
    retries: int = 3


@dataclass(frozen=True, kw_only=True)
class Series:
    """Times of one run in seconds, (blocks, calls of a block), in the order in which they were taken."""

    seconds: NDArray[np.float64]
    noisy: bool = False

    @property
    def count(self) -> int:
        """How many calls were measured."""
        return int(self.seconds.size)

    @property
    def median_ms(self) -> float:
        """The middle of all calls, in milliseconds."""
        return self.percentile_ms(50)

    @property
    def iqr_ms(self) -> float:
        """The range of the middle half of all calls, in milliseconds."""
        return self.percentile_ms(75) - self.percentile_ms(25)

    def percentile_ms(self, share: float) -> float:
        """Return a percentile in milliseconds, linear between two calls."""
        return float(np.percentile(self.seconds, share)) * 1000

    def spread(self) -> float:
        """Return the 90th percentile over the 10th."""
        low, high = np.percentile(self.seconds, (10, 90))
        return float(high / low) if low > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times faster something is, with the ends of a 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval is above 1."""
        return self.low > 1

    @property
    def is_slower(self) -> bool:
        """Whether the whole interval is below 1."""
        return self.high < 1


def take_times(
    runs: Mapping[str, Run], protocol: Protocol | None = None, clock: Clock = time.perf_counter
) -> dict[str, Series]:
    """Time runs in turns. A run has to be over when it returns: on a GPU it waits for the device itself."""
    rules = protocol or Protocol()
    for run in runs.values():
        _warm_up(run, rules, clock)
    found = _interleaved(runs, rules, clock)
    for _ in range(rules.retries):
        if all(series.spread() <= rules.noisy for series in found.values()):
            return found
        found = _interleaved(runs, rules, clock)
    return {name: Series(seconds=series.seconds, noisy=series.spread() > rules.noisy) for name, series in found.items()}


def speed_up(before: Series, after: Series, seed: int = 0) -> Ratio:
    """Return the ratio of two medians, before over after, with a bootstrap interval.

    Blocks taken one after the other are drawn together: what slowed one slowed the other too, and calls of one block
    are no independent samples.
    """
    pairs = min(len(before.seconds), len(after.seconds))
    random = np.random.default_rng(seed)
    ratios = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        drawn = random.integers(0, pairs, pairs)
        ratios[i] = np.median(before.seconds[drawn]) / np.median(after.seconds[drawn])
    low, high = np.percentile(ratios, (50 * (1 - _LEVEL), 50 * (1 + _LEVEL)))
    return Ratio(value=before.median_ms / after.median_ms, low=float(low), high=float(high))


@contextmanager
def alone_on_machine() -> Iterator[None]:
    """Wait until no other process of this machine takes times, and keep others from it."""
    with FileLock(Path(tempfile.gettempdir()) / "autoprune-timing.lock", mode=0o666):
        yield


def _warm_up(run: Run, rules: Protocol, clock: Clock) -> None:
    last: list[float] = []
    for done in range(1, rules.most_warm_up + 1):
        last = [*last, _timed(run, clock)][-rules.settled_calls :]
        if done >= rules.warm_up and max(last) - min(last) < rules.settled * min(last):
            return


def _interleaved(runs: Mapping[str, Run], rules: Protocol, clock: Clock) -> dict[str, Series]:
    blocks: dict[str, list[list[float]]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    while not _is_enough(blocks, spent, rules):
        for name, run in runs.items():
            block = [_timed(run, clock) for _ in range(rules.block)]
            blocks[name].append(block)
            spent[name] += sum(block)
    return {name: Series(seconds=np.asarray(taken)) for name, taken in blocks.items()}


def _is_enough(blocks: Mapping[str, Sequence[object]], spent: Mapping[str, float], rules: Protocol) -> bool:
    counts = [len(taken) * rules.block for taken in blocks.values()]
    if min(counts) and max(spent.values()) >= rules.most_seconds:
        return True
    return min(counts) >= rules.calls and min(spent.values()) >= rules.seconds


def _timed(run: Run, clock: Clock) -> float:
    begin = clock()
    run()
    return clock() - begin
