"""Which neighbours on a front differ by more than luck of the samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from autoprune.report.quality import accuracy, flops_fraction
from autoprune.search.noise import standard_error
from autoprune.study.records import TrialRecord

TWO_SIDED_95 = 1.96


def differ(a: TrialRecord, b: TrialRecord) -> bool:
    """Tell whether two trials' validation accuracies differ at the 95 % level; True where sample counts are unknown.

    |p_a - p_b| against 1.96 sqrt(s_a^2 + s_b^2) with the binomial errors s, as of independent samples. Both models
    saw the same samples, which makes the test careful: it misses small differences rather than inventing them.
    """
    if min(a.metrics.get("count", 0.0), b.metrics.get("count", 0.0)) <= 0:
        return True
    error = math.hypot(*(standard_error(accuracy(t), t.metrics["count"]) for t in (a, b)))
    return abs(accuracy(a) - accuracy(b)) > TWO_SIDED_95 * error


def as_good_as_next(front: Sequence[TrialRecord]) -> Mapping[int, int]:
    """Return, by number, for every trial of a front the next cheaper one from which it does not differ, if so."""
    by_cost = sorted(front, key=lambda t: (-flops_fraction(t), t.number))
    return {a.number: b.number for a, b in itertools.pairwise(by_cost) if not differ(a, b)}
