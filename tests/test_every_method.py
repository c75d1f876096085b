"""What every method of every room owes, found by walking the rooms."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from typing import Any

import pytest

from autoprune import rooms
from autoprune.errors import BadRecipe
from autoprune.fields import Choice, Hyperparameter, PerItem, hyperparameters

METHODS = [(room, name) for room in rooms.ROOMS for name in rooms.names(room)]
FIELDS = [(*m, field) for m in METHODS for field in hyperparameters(rooms.method_class(*m))]


@pytest.mark.parametrize(("room", "name"), METHODS)
def test_a_method_builds_by_name_and_again_from_its_own_config(room: str, name: str) -> None:
    method = rooms.build(room, name)
    assert method.name == name
    assert rooms.build(room, method.config()) == method
    assert set(method.config()) == {"name", *hyperparameters(method)}


@pytest.mark.parametrize(("room", "name"), METHODS)
def test_a_method_says_what_it_is(room: str, name: str) -> None:
    made = rooms.method_class(room, name)
    assert made.__doc__
    assert sys.modules[made.__module__].__doc__
    assert all(declared.help for declared in hyperparameters(made).values())


@pytest.mark.parametrize(("room", "name", "field"), FIELDS)
def test_a_value_out_of_range_is_refused_by_class_and_field(room: str, name: str, field: str) -> None:
    made = rooms.method_class(room, name)
    for wrong in values_out_of_range(hyperparameters(made)[field]):
        with pytest.raises(BadRecipe, match=re.escape(f"{made.__name__}.{field}")):
            rooms.build(room, {"name": name, field: wrong})


def values_out_of_range(declared: Hyperparameter) -> list[Any]:
    if isinstance(declared, PerItem):
        return [v for w in values_out_of_range(declared.value) for v in (w, {"layer": w})]
    if isinstance(declared, Choice):
        return ["no such option", None]
    low, high = declared.valid
    return ["text", None, *(end for end in (low - 1, high + 1) if math.isfinite(end))]


def test_all_methods_travel_to_a_fresh_process() -> None:
    payload = pickle.dumps([rooms.build(*m) for m in METHODS])
    code = "import pickle, sys; print([m.config() for m in pickle.load(sys.stdin.buffer)])"
    done = subprocess.run([sys.executable, "-c", code], input=payload, capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([rooms.build(*m).config() for m in METHODS])
