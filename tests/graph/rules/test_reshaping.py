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


@pytest.mark.parametrize(
    ("shape", "labelled", "after"),
    [((2, 12), (1,), (2, 3, 4)), ((2, 3, 4), (1, 2), (2, 12)), ((2, 6), (1,), (4, 3)), ((2, 6), (1,), (3, 4))],
)
def test_splits_and_mixtures_lock(shape: tuple[int, ...], labelled: tuple[int, ...], after: tuple[int, ...]) -> None:
    value, rel = moved(shape, labelled, after)
    assert value.axes == (None,) * len(after)
    assert (rel.labels.solve().locks >= 0).all()


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
