"""How scores of different groups are made comparable before they are ranked together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Normalisation = Literal["none", "mean", "l2", "max", "standard"]


def normalise(kind: Normalisation, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores (C,) of every group divided by the group's own scale.

    none      unchanged
    mean      by the mean of the absolute scores
    l2        by the Euclidean norm (Molchanov et al. 2017, section 2.2)
    max       by the largest absolute score
    standard  mean subtracted, then by the standard deviation
    A group whose scale is zero is returned as zeros: its units are equally worthless, not undefined.
    """
    return {name: _BY_KIND[kind](score) for name, score in scores.items()}


def _divide(score: Tensor, scale: Tensor) -> Tensor:
    return score / scale if float(scale) > 0 else score * 0


_BY_KIND: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "mean": lambda s: _divide(s, s.abs().mean()),
    "l2": lambda s: _divide(s, s.norm()),
    "max": lambda s: _divide(s, s.abs().max()),
    "standard": lambda s: _divide(s - s.mean(), s.std(correction=0)),
}
