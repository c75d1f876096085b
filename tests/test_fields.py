from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from autoprune.errors import BadRecipe
from autoprune.fields import PerItem, again, choice, hyperparameters, integer, per_item, real
from autoprune.rooms import Method


@dataclass(frozen=True, kw_only=True)
class Sample(Method):
    power: int = choice(1, options=(1, 2), help="exponent")
    lr: float = real(0.1, valid=(1e-4, 1.0), search=(1e-3, 0.5), log=True, help="learning rate")
    count: int = integer(3, valid=(1, 10), search=(2, 5), help="steps")
    keep: object = per_item(0.5, of="group", valid=(0.1, 1.0), search=(0.2, 0.9), unmatched=1.0, help="kept")
    nesterov: bool = choice(True, options=(True, False), help="look ahead")


def test_declarations_are_found_in_order() -> None:
    assert list(hyperparameters(Sample)) == ["power", "lr", "count", "keep", "nesterov"]
    assert hyperparameters(Sample)["lr"].searched() == "0.001 to 0.5, log"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"power": 3}, "Sample.power must be one of 1, 2, got 3"),
        ({"power": True}, "Sample.power must be one of 1, 2, got True"),
        ({"lr": 2.0}, "Sample.lr must be from 0.0001 to 1, got 2.0"),
        ({"lr": "fast"}, "Sample.lr must be a number from 0.0001 to 1, got 'fast'"),
        ({"lr": float("nan")}, "Sample.lr must be from 0.0001 to 1, got nan"),
        ({"count": 2.5}, "Sample.count must be a whole number from 1 to 10, got 2.5"),
        ({"count": True}, "Sample.count must be a whole number from 1 to 10, got True"),
        ({"keep": {"a": 0.0}}, r"Sample.keep\[a\] must be from 0.1 to 1, got 0.0"),
        ({"nesterov": 1}, "Sample.nesterov must be one of True, False, got 1"),
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(BadRecipe, match=f"^{message}$"):
        Sample(**wrong)  # type: ignore[arg-type]


def test_ends_of_the_valid_range_are_allowed() -> None:
    assert Sample(lr=1.0, count=10).count == 10
    assert Sample(lr=1e-4, count=1).lr == 1e-4


def test_whole_number_is_accepted_as_real() -> None:
    assert Sample(lr=1).lr == 1.0


def test_per_item_resolves_exact_names_before_globs_and_leaves_the_rest_unmatched() -> None:
    declared = hyperparameters(Sample)["keep"]
    assert isinstance(declared, PerItem)
    names = ["layer1.0", "layer1.1", "layer2.0", "stem"]
    found = declared.resolve("keep", {"layer1.*": 0.3, "layer1.1": 0.7, "layer2*": 0.4}, names)
    assert found == {"layer1.0": 0.3, "layer1.1": 0.7, "layer2.0": 0.4, "stem": 1.0}
    assert declared.resolve("keep", 0.6, names) == dict.fromkeys(names, 0.6)


def test_per_item_key_that_matches_nothing_is_an_error() -> None:
    declared = hyperparameters(Sample)["keep"]
    assert isinstance(declared, PerItem)
    with pytest.raises(BadRecipe, match=r"keep: no group matches 'layer9\.\*'; there are stem"):
        declared.resolve("keep", {"layer9.*": 0.3}, ["stem"])


def test_search_range_outside_the_valid_one_cannot_be_declared() -> None:
    with pytest.raises(BadRecipe, match="search range of 'rate' must be from 0 to 1, got 2"):
        real(0.5, valid=(0, 1), search=(0, 2), help="rate")


def test_a_declaration_made_again_differs_only_where_it_says_so() -> None:
    @dataclass(frozen=True, kw_only=True)
    class First:
        rate: float = real(0.5, valid=(0.0, 1.0), search=(0.1, 0.9), help="how fast")

    @dataclass(frozen=True, kw_only=True)
    class Second(First):
        rate: float = again(First, "rate", default=0.2)

    first, second = (hyperparameters(made)["rate"] for made in (First, Second))
    assert (first.default, second.default, Second().rate) == (0.5, 0.2, 0.2)
    assert dataclasses.replace(second, default=0.5) == first
    with pytest.raises(BadRecipe, match="must be from 0 to 1"):
        again(First, "rate", default=2.0)
