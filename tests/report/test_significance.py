from __future__ import annotations

import io

import pytest
from rich.console import Console

from autoprune.report.front import Front
from autoprune.report.significance import as_good_as_next, differ
from autoprune.report.tables import print_front

from .conftest import study, trial


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # n = 287: the errors of 0.95 and 0.90 are 0.01286 and 0.01771, together 0.02189, times 1.96 is 0.0429
        (0.95, 0.90, True),
        # of 0.95 and 0.92 0.01286 and 0.01601, together 0.02054, times 1.96 is 0.0403
        (0.95, 0.92, False),
    ],
)
def test_worked_differences(a, b, expected):
    one, two = trial(1, (a,), 0.5), trial(2, (b,), 0.4)
    assert differ(one, two) is differ(two, one) is expected


def test_only_neighbours_are_compared_and_the_dearer_is_named():
    members = [trial(1, (0.95,), 0.5), trial(2, (0.93,), 0.4), trial(3, (0.91,), 0.3), trial(4, (0.70,), 0.2)]
    assert as_good_as_next(members) == {1: 2, 2: 3}


def test_the_front_says_it_in_every_form():
    front = Front.of(study((trial(1, (0.95,), 0.5), trial(2, (0.94,), 0.4), trial(3, (0.6,), 0.2))))
    assert [t["as_good_as_next"] for t in front.plain()["front"]] == [2, None, None]


def test_the_table_marks_it():
    front = Front.of(study((trial(1, (0.95,), 0.5), trial(2, (0.94,), 0.4), trial(3, (0.6,), 0.2))))
    text = io.StringIO()
    print_front(Console(file=text, width=200), front)
    shown = [line.split()[:3] for line in text.getvalue().splitlines() if "trial" in line]
    assert shown[:3] == [["~", "trial", "1"], ["*", "trial", "2"], ["*", "trial", "3"]]
