from __future__ import annotations

import pytest

from autoprune import rooms
from autoprune.errors import BadRecipe, UnknownName


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_every_room_has_methods_that_build_and_describe_themselves(room: str) -> None:
    assert rooms.names(room)
    for name in rooms.names(room):
        method = rooms.build(room, name)
        assert method.name == name
        assert isinstance(method, rooms.base_class(room))
        assert rooms.build(room, method.config()) == method
        assert type(method).__doc__
        assert type(method).__name__ == "".join(part.capitalize() for part in name.split("_"))


def test_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no criteria method named 'l1norm'\. Did you mean 'l1_norm'?"):
        rooms.build("criteria", "l1norm")


def test_unknown_room_is_named() -> None:
    with pytest.raises(UnknownName, match=r"no room named 'criterias'. Did you mean 'criteria'?"):
        rooms.names("criterias")


def test_unknown_hyperparameter_lists_those_there_are() -> None:
    with pytest.raises(BadRecipe, match="schedule: iterative has no hyperparameter 'cuont'; it has: count, epoch"):
        rooms.build("schedules", {"name": "iterative", "cuont": 2}, "schedule")


def test_neither_name_nor_mapping() -> None:
    with pytest.raises(BadRecipe, match="criteria must be a method's name or a mapping with the key 'name', got 3"):
        rooms.build("criteria", 3)  # type: ignore[arg-type]


def test_helper_files_are_no_methods() -> None:
    assert not [name for room in rooms.ROOMS for name in rooms.names(room) if name.startswith("_")]
