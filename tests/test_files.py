from __future__ import annotations

import pytest

from autoprune.files import append_line, read_json, read_lines, replacing, write_json, write_text


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "hello")
    write_text(tmp_path / "a" / "b.txt", "there")
    assert (tmp_path / "a" / "b.txt").read_text() == "there"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError), replacing(path) as temporary:
        temporary.write_text(5)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_lines_survive_one_that_was_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2')
    append_line(path, {"n": 3})
    assert read_lines(path) == [{"n": 1}, {"n": 3}]
