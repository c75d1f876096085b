"""The baseline that every model is set beside at its target, and how far the comparison is fair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from autoprune.report.quality import accuracy, name_of
from autoprune.study.records import TrialRecord

if TYPE_CHECKING:
    from autoprune.report.front import Front

REFERENCE = "uniform_l1"
"""The baseline that the front is compared with, where a study has it."""
_ALIKE = 1.1
"""Training that is longer by no more than this counts as equal."""


def beside(front: Front, trial: TrialRecord) -> TrialRecord | None:
    """Return the reference baseline at the trial's target, None for itself and where it has not finished."""
    same = (b for b in front.baselines if b.baseline == REFERENCE and b.target_label == trial.target_label)
    return None if trial.baseline == REFERENCE else next(same, None)


def gain(front: Front, trial: TrialRecord) -> float:
    """Return the validation accuracy over the reference baseline's at the same target, NaN without one."""
    other = beside(front, trial)
    return math.nan if other is None else accuracy(trial) - accuracy(other)


def longer_trained(front: Front) -> str:
    """Return a sentence about models of the front that trained on more samples than the reference, '' for none.

    Rungs train all alike; schedules, regularisers and others that train before the last cut come on top.
    """
    told = []
    for trial in front.trials:
        other = beside(front, trial)
        own = trial.cost.get("trained_samples", 0.0)
        least = 0.0 if other is None else other.cost.get("trained_samples", 0.0)
        if least > 0 and own > _ALIKE * least:
            told.append(f"{name_of(trial)} ({own / least:.1f}x)")
    if not told:
        return ""
    return f" Recipes that train before their last cut, too, saw more samples than {REFERENCE}: {', '.join(told)}."
