from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autoprune.errors import BadInput, UnknownName
from autoprune.imports import call, is_reference, resolve


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_resolve_finds_a_module_in_the_current_directory(here: Path) -> None:
    (here / "neighbour_one.py").write_text("def make():\n    return 3\n")
    assert resolve("neighbour_one:make", "model")() == 3


def test_resolve_names_the_missing_module(here: Path) -> None:
    with pytest.raises(UnknownName, match="no module 'no_such_module'"):
        resolve("no_such_module.deep:make", "model")


def test_resolve_suggests_the_nearest_function(here: Path) -> None:
    (here / "neighbour_two.py").write_text("def make_model():\n    return 3\n")
    with pytest.raises(UnknownName, match=r"Did you mean 'neighbour_two\.make_model'"):
        resolve("neighbour_two:make_modle", "model")


def test_resolve_tells_an_import_that_fails_inside_the_module(here: Path) -> None:
    (here / "neighbour_three.py").write_text("import no_such_dependency\n")
    with pytest.raises(BadInput, match="importing neighbour_three failed: No module named 'no_such_dependency'"):
        resolve("neighbour_three:make", "data")


def test_resolve_tells_what_a_module_raised(here: Path) -> None:
    (here / "neighbour_four.py").write_text("1 / 0\n")
    with pytest.raises(BadInput, match="ZeroDivisionError: division by zero"):
        resolve("neighbour_four:make", "data")


def test_resolve_refuses_what_cannot_be_called() -> None:
    with pytest.raises(BadInput, match="is a str, which cannot be called"):
        resolve("os:sep", "model")


@pytest.mark.parametrize("reference", ["os", "os:", ":path", "a b:c", "os:path:join"])
def test_resolve_refuses_another_form(reference: str) -> None:
    assert not is_reference(reference)
    with pytest.raises(BadInput, match="is not of the form"):
        resolve(reference, "model")


def test_call_tells_what_a_function_takes() -> None:
    def make(width: int, *, depth: int = 1) -> int:
        return width * depth

    assert call(make, {"width": 2}, "model 'x'") == 2
    with pytest.raises(BadInput, match=r"model 'x': missing a required argument: 'width'\. It takes: width, depth\."):
        call(make, {"widht": 2}, "model 'x'")


def test_call_tells_what_a_function_raised() -> None:
    def make() -> None:
        raise OSError("disk is full")

    with pytest.raises(BadInput, match="model 'x' raised OSError: disk is full"):
        call(make, {}, "model 'x'")
