from __future__ import annotations

from collections.abc import Sequence

import pytest

from autoprune.graph.labels import Why
from autoprune.graph.search import LIMIT, Search

BAD = Why("verification", "", "differ")


def search(bad: set[str], kinds: dict[str, str], count: int = 8) -> tuple[dict[str, Why], int]:
    """Culprits among b0, b1, ..., of which these fail by themselves, and the number of tries."""
    tries = 0

    def problem(names: Sequence[str]) -> Why | None:
        nonlocal tries
        tries += 1
        return BAD if bad & set(names) else None

    families = {f"b{i}": "b*" for i in range(count)}
    return Search(families, lambda path: set(), problem, kinds).culprits(), tries


@pytest.mark.parametrize("good", [{"b3", "b4", "b5"}, {"b1"}, {"b7"}, set()])
def test_members_of_a_family_that_pass_are_not_frozen(good: set[str]) -> None:
    every = {f"b{i}" for i in range(8)}
    assert set(search(every - good, {})[0]) == every - good


def test_one_hostile_member_freezes_alone() -> None:
    for i in range(8):
        assert set(search({f"b{i}"}, {})[0]) == {f"b{i}"}


def test_members_of_another_kind_are_tried_although_all_probes_fail() -> None:
    # The first, the last, the middle and the second are what is tried of a family.
    bad = {"b0", "b1", "b4", "b7"}
    kinds = {f"b{i}": "hostile" if f"b{i}" in bad else "plain" for i in range(8)}
    assert set(search(bad, kinds)[0]) == bad


def test_failing_family_of_one_kind_takes_few_tries() -> None:
    every = {f"b{i}" for i in range(60)}
    found, tries = search(every, dict.fromkeys(every, "same"), 60)
    assert set(found) == every
    assert tries <= 8


def test_what_is_unproven_at_the_limit_is_frozen_with_that_reason() -> None:
    families = {f"b{i}": f"family {i}" for i in range(4 * LIMIT)}
    bad = set(list(families)[::2])
    found = Search(families, lambda path: set(), lambda names: BAD if bad & set(names) else None).culprits()
    assert bad <= set(found)
    assert any("not proven within" in why.reason for why in found.values())
