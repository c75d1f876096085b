"""The report stands alone and shows what it must."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from autoprune.report import html, provenance
from autoprune.report.front import Front
from autoprune.study.records import StudyRecord

from .conftest import study, trial

GROUPS = {"conv1": 16, "layer1.conv1": 12}


@pytest.fixture
def page(record: StudyRecord, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(provenance, "group_sizes", lambda folder: GROUPS)
    return html.render(Front.of(record))


def figures_of(page: str) -> dict[str, dict[str, list[dict[str, object]]]]:
    found = re.search(r'<script id="figures" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_needs_no_network(page: str) -> None:
    own = page.replace(html._plotly(), "")
    assert not re.search(r'(src|href)\s*=\s*"', own)
    assert "url(" not in own
    assert "default-src 'none'" in own


def test_shows_front_baselines_and_base(page: str) -> None:
    for text in (
        "Best at 50 % of the FLOPs",
        "95.00 %",
        "+5.00 points",
        "uniform_l1 (0)",
        "base model",
        "test 94.00 %",
    ):
        assert text in page
    assert page.count("<summary>recipe</summary>") == 5


def test_shows_failures_settings_and_cost(page: str) -> None:
    assert "the training loss became nan" in page
    assert "settings of the study" in page
    assert "samples trained on" in page


def test_figures(page: str) -> None:
    found = figures_of(page)
    assert list(found) == ["front", "hypervolume", "trials", "kept"]
    names = [trace["name"] for trace in found["front"]["data"]]
    assert names == ["baseline uniform_l1", "front", "front, test accuracy", "base model"]
    heat = found["kept"]["data"][0]
    # trial 4 keeps int(16 * 0.24) = 3 of 16 and int(12 * 0.24) = 2 of 12
    assert heat["text"][0] == ["3 of 16", "2 of 12"]  # type: ignore[index]
    assert heat["x"] == list(GROUPS)


def test_every_colour_is_of_the_page(page: str) -> None:
    used = set(re.findall(r'"@([a-z]+)"', json.dumps(figures_of(page))))
    assert used <= set(re.findall(r"--([a-z]+):", page))


def test_escapes_what_studies_say() -> None:
    bad = '</script><script>alert("x")</script>'
    trials = (trial(0, (0.5,), 0.5, baseline=bad), trial(1, (), 0.5, state="failed", error=bad))
    page = html.render(Front.of(study(trials)))
    assert bad not in page
    assert page.count("<script") == 3 + html._plotly().count("<script")


def test_study_without_a_finished_trial(record: StudyRecord) -> None:
    page = html.render(Front.of(dataclasses.replace(record, trials=record.trials[5:6], base={})))
    assert "no finished trial yet" in page
    assert "Plotly" not in page


def test_is_written_into_the_run_folder(trials: tuple[object, ...], tmp_path: Path) -> None:
    path = html.write_report(Front.of(study(trials, tmp_path)))  # type: ignore[arg-type]
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_machine_is_that_of_the_run_folder(tmp_path: Path) -> None:
    assert provenance.hardware(tmp_path) == {}
    (tmp_path / "machine.json").write_text('{"cores": "64"}')
    assert provenance.hardware(tmp_path) == {"cores": "64"}


def test_versions_of_a_resumed_study(tmp_path: Path) -> None:
    for number, version in ((0, "2.14"), (1, "2.15"), (2, "2.14")):
        folder = tmp_path / "trials" / str(number)
        folder.mkdir(parents=True)
        (folder / "autoprune.json").write_text(json.dumps({"versions": {"torch": version}}))
    assert provenance.versions(tmp_path) == {"torch": "2.14, 2.15"}
