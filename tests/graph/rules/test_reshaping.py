"""Views, by hand: which labels an axis has after its indices were moved."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.graph.labels import Value
from autoprune.graph.relations import Operation, Relations
from autoprune.graph.rules.reshaping import reshape, slice_


def moved(shape: tuple[int, ...], labelled: tuple[int, ...], after: tuple[int, ...]) -> tuple[Value, Relations]:
    rel = Relations({}, {})
    axes = tuple(rel.labels.new(n) if i in labelled else None for i, n in enumerate(shape))
    op = Operation("view", "aten.view.default", "", (), {"self": Value(shape, axes)}, (after,))
    return reshape(op, rel)[0], rel


@pytest.mark.parametrize(
    ("shape", "labelled", "after", "expected"),
    [
        ((2, 3, 2, 2), (1,), (2, 12), [None, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]]),
        ((2, 3, 1, 1), (1,), (2, 3), [None, [0, 1, 2]]),
        ((2, 3), (1,), (2, 3, 1, 1), [None, [0, 1, 2], None, None]),
        ((2, 2, 3), (2,), (4, 3), [None, [0, 1, 2]]),
        ((4, 3), (1,), (2, 2, 3), [None, None, [0, 1, 2]]),
        ((2, 3, 4), (2,), (2, 12), [None, [0, 1, 2, 3] * 3]),
        ((1, 6), (1,), (1, 6), [None, list(range(6))]),
    ],
)
def test_merges_repeat(
    shape: tuple[int, ...], labelled: tuple[int, ...], after: tuple[int, ...], expected: list[list[int] | None]
) -> None:
    value, rel = moved(shape, labelled, after)
    assert [None if axis is None else axis.tolist() for axis in value.axes] == expected
    assert (rel.labels.solve().locks < 0).all()


def test_a_split_defines_every_cell_by_its_row_and_column() -> None:
    value, rel = moved((2, 12), (1,), (2, 3, 4))
    _, heads, dims = value.axes
    assert heads is not None
    assert dims is not None
    index, leaf = rel.labels.solve().leaves(np.arange(12))
    assert [leaf[index == i].tolist() for i in (0, 5, 11)] == [
        [heads[0], dims[0]],
        [heads[1], dims[1]],
        [heads[2], dims[3]],
    ]


def test_joined_axes_need_both() -> None:
    value, rel = moved((2, 3, 4), (1, 2), (2, 12))
    joined = value.axes[1]
    assert joined is not None
    index, leaf = rel.labels.solve().leaves(joined)
    assert [leaf[index == i].tolist() for i in (0, 5)] == [[0, 3], [1, 4]]


def test_split_and_joined_again_is_the_same_units() -> None:
    value, rel = moved((1, 12), (1,), (3, 4))
    back = Operation("view", "aten.view.default", "", (), {"self": value}, ((1, 12),))
    joined = reshape(back, rel)[0].axes[1]
    assert joined is not None
    solved = rel.labels.solve()
    for first, second in zip(solved.leaves(joined), solved.leaves(np.arange(12)), strict=True):
        assert first.tolist() == second.tolist()


def test_a_view_across_the_batch_ties_what_it_mixes() -> None:
    _value, rel = moved((2, 6), (1,), (3, 4))
    _, leaf = rel.labels.solve().leaves(np.arange(6))
    assert len(set(leaf.tolist())) < 6


def test_a_repeated_axis_splits_again() -> None:
    rel = Relations({}, {})
    value = Value((2, 6), (None, np.array([0, 0, 1, 1, 2, 2])))
    op = Operation("view", "aten.view.default", "", (), {"self": value}, ((2, 3, 2),))
    first, channel, last = reshape(op, rel)[0].axes
    assert (first, last) == (None, None)
    assert channel is not None
    assert channel.tolist() == [0, 1, 2]


def test_slice_takes_its_labels() -> None:
    rel = Relations({}, {})
    arguments = {"self": Value((1, 6), (None, rel.labels.new(6))), "dim": 1, "start": 1, "end": 2**63 - 1, "step": 2}
    labels = slice_(Operation("slice", "aten.slice.Tensor", "", (), arguments, ((1, 3),)), rel)[0].axes[1]
    assert labels is not None
    assert labels.tolist() == [1, 3, 5]
