"""Ties and locks, by hand."""

from __future__ import annotations

import numpy as np

from autoprune.graph.labels import Labels, Why

WHY = Why("op", "module", "reason")


def test_ties_join_transitively() -> None:
    labels = Labels()
    a, b, c = labels.new(3), labels.new(3), labels.new(3)
    labels.tie(c, b, WHY)
    labels.tie(b, a[::-1], WHY)
    assert labels.solve().roots.tolist() == [0, 1, 2, 2, 1, 0, 2, 1, 0]


def test_long_chains_end_at_the_smallest() -> None:
    labels = Labels()
    all_ = labels.new(1000)
    labels.tie(all_[:-1], all_[1:], WHY)
    assert not labels.solve().roots.any()


def test_a_tie_with_what_is_never_cut_locks() -> None:
    labels = Labels()
    a, b = labels.new(2), labels.new(2)
    assert labels.tie(a, None, WHY) is None
    labels.tie(b[:1], a[1:], Why("later", "", ""))
    solved = labels.solve()
    assert [lock >= 0 for lock in solved.locks.tolist()] == [True, True, True, False]
    assert solved.whys[int(solved.locks[2])] == WHY


def test_first_reason_wins() -> None:
    labels = Labels()
    a = labels.new(1)
    labels.lock(a, WHY)
    labels.lock(a, Why("second", "", ""))
    solved = labels.solve()
    assert solved.whys[int(solved.locks[0])] is WHY


def test_nothing_to_solve() -> None:
    solved = Labels().solve()
    assert len(solved.roots) == len(solved.locks) == 0
    assert np.array_equal(solved.roots, [])
