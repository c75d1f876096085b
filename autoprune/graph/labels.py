"""Labels of tensor indices, and which of them must stay or go together.

Every index of every axis that could be cut carries one integer label. Rules of operators *tie* labels (kept
or removed together) or *lock* them (never removed). `Labels.solve` turns the ties into components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

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


Definition = tuple[IntArray, IntArray]
"""(n,) labels and (n, k) factors: label i is kept when all of its k factors are."""


@dataclass(frozen=True, eq=False)
class Components:
    """roots (N,): the smallest label of each label's component. locks (N,): index into `whys` of its first
    lock, -1 without. parts: root of a defined component -> roots of the open components it depends on,
    locked_parts: of those that are locked, at any depth. grid (N,): 1 + which axis of a split a label came from, 0 for
    all others."""

    roots: IntArray
    locks: IntArray
    whys: tuple[Why, ...]
    parts: Mapping[int, tuple[int, ...]]
    locked_parts: Mapping[int, tuple[int, ...]]
    grid: IntArray

    def leaves(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        """Pairs (index into labels, root that decides on it), both (m,), ordered by index."""
        roots = self.roots[labels]
        defined = self._defined[roots]
        index, leaf = [np.flatnonzero(~defined)], [roots[~defined]]
        for i in np.flatnonzero(defined).tolist():
            parts = self.parts[int(roots[i])]
            index.append(np.full(len(parts), i))
            leaf.append(np.array(parts, dtype=np.int64))
        where = np.concatenate(index).astype(np.int64)
        order = np.argsort(where, kind="stable")
        return where[order], np.concatenate(leaf)[order]

    @cached_property
    def _defined(self) -> NDArray[np.bool_]:
        result = np.zeros(len(self.roots), dtype=np.bool_)
        result[list(self.parts)] = True
        return result


@dataclass
class Labels:
    """Collects ties, definitions and locks; nothing is solved before `solve`, so that every call stays
    vectorised."""

    count: int = 0
    _ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    _locks: list[tuple[IntArray, Why]] = field(default_factory=list)
    _definitions: list[Definition] = field(default_factory=list)
    _grid: list[tuple[IntArray, int]] = field(default_factory=list)
    _known: dict[tuple[object, ...], tuple[IntArray, ...]] = field(default_factory=dict)

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

    def split(self, labels: IntArray) -> tuple[IntArray, ...]:
        """Labels of the axes of a grid, given the labels of its cells. The same cells have the same axes."""
        key = ("split", labels.shape, labels.tobytes())
        if key not in self._known:
            axes = tuple(self.new(size) for size in labels.shape)
            self._grid.extend((axis, 1 + i) for i, axis in enumerate(axes))
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
            self._definitions.append((labels.reshape(-1), grid.reshape(-1, labels.ndim)))
            self._known[key] = axes
        return self._known[key]

    def join(self, factors: list[IntArray]) -> IntArray:
        """Labels of an axis whose index i is kept when every factor's index i is. factors: (n,) each."""
        key = ("join", *(labels.tobytes() for labels in factors))
        if key not in self._known:
            table = np.stack(factors, axis=-1)
            rows, index = np.unique(table, axis=0, return_inverse=True)
            fresh = self.new(len(rows))
            self._definitions.append((fresh, rows))
            self._known[key] = (fresh[index.reshape(-1)],)
        return self._known[key][0]

    def solve(self) -> Components:
        """Return the connected components of all ties, with what the definitions imply."""
        while True:
            roots_N = _components(self.count, self._ties)
            defined, more = _defined(roots_N, self._definitions)
            if not len(more[0]):
                break
            self._ties.append(more)
        whys = tuple(why for _, why in self._locks)
        first_N = np.full(self.count, len(whys), dtype=np.int64)
        for index, (labels, _) in enumerate(self._locks):
            np.minimum.at(first_N, roots_N[labels], index)
        _lock_parts(defined, first_N, len(whys))
        lock_N = first_N[roots_N]
        lock_N[lock_N == len(whys)] = -1
        grid_N = np.zeros(self.count, dtype=np.int64)
        for labels, place in self._grid:
            np.maximum.at(grid_N, roots_N[labels], place)
        return Components(roots_N, lock_N, whys, _parts(defined, lock_N), _locked_below(defined, lock_N), grid_N)


def _defined(
    roots_N: IntArray, definitions: list[Definition]
) -> tuple[dict[int, tuple[int, ...]], tuple[IntArray, IntArray]]:
    """Root -> roots of its factors, and ties of factors that two definitions of one component ask for."""
    found: dict[int, tuple[int, ...]] = {}
    left: list[int] = []
    right: list[int] = []
    for labels, factors in definitions:
        for root, row in zip(roots_N[labels].tolist(), roots_N[factors].tolist(), strict=True):
            new = tuple(dict.fromkeys(row))
            old = found.setdefault(root, new)
            if old == new or set(old) == set(new):
                continue
            # What both name stays; the others are tied in their order, and what is left over to the first.
            mine = [r for r in old if r not in new] or [old[0]]
            others = [r for r in new if r not in old] or [new[0]]
            for i in range(max(len(mine), len(others))):
                left.append(mine[min(i, len(mine) - 1)])
                right.append(others[min(i, len(others) - 1)])
    return found, (np.array(left, dtype=np.int64), np.array(right, dtype=np.int64))


def _lock_parts(defined: Mapping[int, tuple[int, ...]], first_N: IntArray, free: int) -> None:
    """What is never removed needs all of its factors; so does what depends on itself."""
    changed = True
    while changed:
        changed = False
        for root, factors in defined.items():
            lock = first_N[root]
            for factor in factors:
                if lock < first_N[factor]:
                    first_N[factor] = lock
                    changed = True
            if lock == free and len(factors) and (inner := int(max(first_N[f] for f in factors))) < free:
                first_N[root] = inner
                changed = True


def _parts(defined: Mapping[int, tuple[int, ...]], lock_N: IntArray) -> dict[int, tuple[int, ...]]:
    """Open components of every defined one that is not locked, through definitions of definitions."""
    done: dict[int, tuple[int, ...]] = {}

    def visit(root: int, above: frozenset[int]) -> tuple[int, ...]:
        if root in above or lock_N[root] >= 0:
            return ()
        if root not in defined:
            return (root,)
        if root not in done:
            found = {leaf for factor in defined[root] for leaf in visit(factor, above | {root})}
            done[root] = tuple(sorted(found))
        return done[root]

    return {root: visit(root, frozenset()) for root in defined if lock_N[root] < 0}


def _locked_below(defined: Mapping[int, tuple[int, ...]], lock_N: IntArray) -> dict[int, tuple[int, ...]]:
    """First locked components on the way down from every defined one, through open ones."""
    done: dict[int, tuple[int, ...]] = {}

    def visit(root: int, above: frozenset[int]) -> tuple[int, ...]:
        if lock_N[root] >= 0:
            return (root,)
        if root not in defined or root in above:
            return ()
        return below(root, above)

    def below(root: int, above: frozenset[int]) -> tuple[int, ...]:
        if root not in done:
            found = (leaf for factor in defined[root] for leaf in visit(factor, above | {root}))
            done[root] = tuple(dict.fromkeys(found))
        return done[root]

    return {root: below(root, frozenset()) for root in defined}


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
