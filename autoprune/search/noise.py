"""How much of a difference between measured accuracies may be luck of the samples."""

from __future__ import annotations

import math


def standard_error(accuracy: float, count: float) -> float:
    """Return sqrt(p (1 - p) / n), the binomial error of accuracy p on n samples; 0 where either says nothing.

    >>> round(standard_error(0.9, 100), 4), standard_error(0.9, 0)
    (0.03, 0.0)
    """
    if not count > 0 or not 0 <= accuracy <= 1:
        return 0.0
    return math.sqrt(accuracy * (1 - accuracy) / count)


def is_lead(better: float, worse: float, count: float, errors: float) -> bool:
    """Tell whether `better` exceeds `worse` by more than so many standard errors of their mean on `count` samples.

    >>> is_lead(0.92, 0.89, 100, 1.0), is_lead(0.93, 0.89, 100, 1.0), is_lead(0.9, 0.89, 100, 0.0)
    (False, True, True)
    """
    return better - worse > errors * standard_error((better + worse) / 2, count)
