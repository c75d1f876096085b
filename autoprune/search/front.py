"""A front that grows trial by trial, and whether it still moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoprune.search import objectives


def losses(names: Sequence[str], metrics: Mapping[str, float]) -> tuple[float, ...]:
    """Return the objectives' values with signs such that less is better. Raises as `objectives.values` does."""
    signs = {"maximize": -1.0, "minimize": 1.0}
    values = objectives.values(names, metrics)
    return tuple(signs[way] * value for way, value in zip(objectives.directions(names), values, strict=True))


class GrowingFront:
    """The non-dominated results so far. unmoved: trials in a row that added nothing to it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._rows: list[tuple[float, ...]] = []
        self.unmoved = 0

    def add(self, metrics: Mapping[str, float] | None, *, counts: bool = True) -> bool:
        """Take up a trial that is over, None for one without a result; tell whether it moved the front.

        Without `counts` it is none of those that are counted when they do not.
        """
        row = None if metrics is None else losses(self._names, metrics)
        if row is None or any(all(a <= b for a, b in zip(known, row, strict=True)) for known in self._rows):
            self.unmoved += counts
            return False
        self._rows = [k for k in self._rows if not all(a <= b for a, b in zip(row, k, strict=True))] + [row]
        self.unmoved = 0
        return True
