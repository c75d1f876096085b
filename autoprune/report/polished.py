"""What a long last training gave the models of a front: means over repeats with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoprune.report import extras
from autoprune.study.records import PolishRecord, TrialRecord

_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of accuracies. half_width: of its 95 % confidence interval, NaN for a single value."""

    value: float
    half_width: float
    count: int

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"mean": self.value, "half_width": self.half_width, "count": self.count}

    def __str__(self) -> str:
        spread = f" ± {100 * self.half_width:.2f}" if math.isfinite(self.half_width) else ""
        return f"{100 * self.value:.2f}{spread} %"


def mean_of(values: Sequence[float]) -> Mean | None:
    """Return the mean with its interval by Student's t over the repeats; None without values."""
    count = len(values)
    if not count:
        return None
    middle = math.fsum(values) / count
    if count == 1:
        return Mean(value=middle, half_width=math.nan, count=1)
    from scipy.stats import t

    spread = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (count - 1))
    half_width = float(t.ppf((1 + _LEVEL) / 2, count - 1)) * spread / math.sqrt(count)
    return Mean(value=middle, half_width=half_width, count=count)


def latest(trial: TrialRecord) -> tuple[PolishRecord, ...]:
    """Return the trial's trainings of the length that its own model had last, or the longest without that one."""
    if not trial.polished:
        return ()
    own = [one.epochs for one in trial.polished if one.repeat == 0]
    epochs = own[0] if own else max(one.epochs for one in trial.polished)
    return tuple(one for one in trial.polished if one.epochs == epochs)


def validation(trial: TrialRecord) -> Mean | None:
    """Return the validation accuracy over the repeats."""
    return mean_of([one.metrics["accuracy"] for one in latest(trial)])


def on_test(trial: TrialRecord) -> Mean | None:
    """Return the test accuracy over the repeats."""
    return mean_of([one.test["accuracy"] for one in latest(trial) if "accuracy" in one.test])


def averaged(trial: TrialRecord) -> dict[str, float]:
    """Return the means, over the repeats, of the metrics that all of them have."""
    own = [one.metrics for one in latest(trial)]
    shared = set.intersection(*(set(metrics) for metrics in own)) if own else set()
    return {name: math.fsum(metrics[name] for metrics in own) / len(own) for name in sorted(shared)}


def as_polished(trial: TrialRecord) -> tuple[TrialRecord, PolishRecord] | None:
    """Return the trial with the metrics of its polished model, the best repeat by validation, and which that is."""
    found = max(latest(trial), key=lambda one: (one.metrics["accuracy"], -one.repeat), default=None)
    if found is None:
        return None
    last = replace(trial.rungs[-1], metrics=dict(found.metrics))
    return replace(trial, rungs=(*trial.rungs[:-1], last), test=dict(found.test) or None), found


def plain(trial: TrialRecord) -> dict[str, Any] | None:
    """Return what is known of the trial's last training, None without any."""
    shown, tested = validation(trial), on_test(trial)
    if shown is None:
        return None
    means = averaged(trial)
    return {
        "epochs": latest(trial)[0].epochs,
        "accuracy": shown.plain(),
        "test_accuracy": None if tested is None else tested.plain(),
        **{name: means[name] for name in extras.METRICS if name in means},
    }
