"""Labels of tensor indices, and which of them must stay or go together.

Every index of every axis that could be cut carries one integer label. Rules of operators *tie* labels (kept
or removed together) or *lock* them (never removed). `Labels.solve` turns the ties into components.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Axis = IntArray | None
"""Labels of one axis, shape (n,); None is an axis that is never cut, so a tie with it locks."""


@dataclass(frozen=True)
class Why:
    """Why something is locked: the operator and the module where it happened, and a sentence."""

    operator: str
    module: str
    reason: str


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in the graph: its shape, its labels per axis, and the parameter or buffer it is, if it is
    one."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    source: str | None = None

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.axes)
        assert all(a is None or len(a) == n for a, n in zip(self.axes, self.shape, strict=True))


@dataclass(frozen=True, eq=False)
class Components:
    """roots (N,): the smallest label of each label's component. locks (N,): index into `whys` of its first
    lock, -1 without."""

    roots: IntArray
    locks: IntArray
    whys: tuple[Why, ...]


@dataclass
class Labels:
    """Collects ties and locks; nothing is solved before `solve`, so that every call stays vectorised."""

    count: int = 0
    _ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    _locks: list[tuple[IntArray, Why]] = field(default_factory=list)

    def new(self, n: int) -> IntArray:
        """Return n fresh labels, or for one index the same: a single index is a component like any other."""
        self.count += n
        return np.arange(self.count - n, self.count, dtype=np.int64)

    def tie(self, first: Axis, second: Axis, why: Why) -> Axis:
        """Tie two axes index by index and return the labels to go on with; None locks the other one."""
        if first is None or second is None:
            self.lock(first, why)
            self.lock(second, why)
            return None
        if first is not second:
            self._ties.append((first, second))
        return first

    def lock(self, labels: Axis, why: Why) -> None:
        """Make sure that these indices are never removed."""
        if labels is not None:
            self._locks.append((labels, why))

    def solve(self) -> Components:
        """Return the connected components of all ties."""
        roots_N = _components(self.count, self._ties)
        whys = tuple(why for _, why in self._locks)
        first_N = np.full(self.count, len(whys), dtype=np.int64)
        for index, (labels, _) in enumerate(self._locks):
            np.minimum.at(first_N, roots_N[labels], index)
        lock_N = first_N[roots_N]
        lock_N[lock_N == len(whys)] = -1
        return Components(roots_N, lock_N, whys)


def _components(count: int, ties: list[tuple[IntArray, IntArray]]) -> IntArray:
    """Hook the larger root under the smaller one and compress, until no tie joins two roots."""
    parent = np.arange(count, dtype=np.int64)
    if not ties:
        return parent
    left = np.concatenate([a for a, _ in ties])
    right = np.concatenate([b for _, b in ties])
    while True:
        a, b = parent[left], parent[right]
        open_ = a != b
        if not open_.any():
            return parent
        left, right = left[open_], right[open_]
        np.minimum.at(parent, np.maximum(a, b)[open_], np.minimum(a, b)[open_])
        while not np.array_equal(shorter := parent[parent], parent):
            parent = shorter
