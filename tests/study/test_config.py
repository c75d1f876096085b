from __future__ import annotations

import re

import pytest
import yaml

from autoprune import shipped
from autoprune.errors import BadInput, BadRecipe, UnknownName
from autoprune.study.config import StudyConfig, expand, load, parse_override, target_label

PLAIN = {"name": "x", "model": {"name": "lenet"}, "data": {"name": "digits"}}


@pytest.mark.parametrize("name", shipped.names("studies"))
def test_every_shipped_study_is_valid(name, monkeypatch):
    text = shipped.find("studies", name).read_text()
    for variable in re.findall(r"\$\{(\w+)", text):
        monkeypatch.setenv(variable, "/data")
    assert isinstance(load(name).config, StudyConfig)


def test_what_is_written_is_read_back():
    config = load(PLAIN | {"targets": [0.5, {"params_fraction": 0.3}], "budget": {"time": "90s"}}).config
    assert load(yaml.safe_load(config.to_yaml())).config == config
    assert load(config).config == config


def test_targets_are_fractions_of_flops_or_named():
    targets = load(PLAIN | {"targets": [0.5, {"params_fraction": 0.3}]}).config.targets
    assert [target_label(t) for t in targets] == ["flops=0.5", "params=0.3"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("0.5h", 1800), (45, 45)]
)
def test_durations(text, seconds):
    assert load(PLAIN | {"budget": {"time": text}}).config.budget.time == seconds


def test_origins_say_where_every_value_came_from(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", "/data")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(PLAIN | {"model": {"name": "lenet", "weights": "${WHERE}/w.pt"}, "seed": 3}))
    loaded = load(str(path), {"budget.trials": 7})
    assert loaded.config.model.weights == "/data/w.pt"
    assert loaded.config.budget.trials == 7
    wanted = {
        "seed": "file",
        "name": "file",
        "model.weights": "environment",
        "budget.trials": "flag",
        "budget.time": "default",
        "sampler.name": "default",
    }
    assert {key: loaded.origins[key] for key in wanted} == wanted


def test_variables(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expand("${NOWHERE:-/tmp}/x", "data.root") == "/tmp/x"
    with pytest.raises(BadInput, match=r"data\.root needs the environment variable NOWHERE.*--set data\.root"):
        expand("${NOWHERE}/x", "data.root")


def test_a_flag_is_enough_where_a_variable_is_not_set():
    image_folder = {"name": "image_folder", "root": "${NOWHERE}"}
    config = load(PLAIN | {"data": image_folder}, {"data.root": "/data"}).config
    assert config.data.root == "/data"


def test_the_storage_url_keeps_its_variables(monkeypatch):
    monkeypatch.setenv("PASSWORD", "secret")
    config = load(PLAIN | {"storage": "postgresql://me:${PASSWORD}@db/x"}).config
    assert "secret" not in config.to_yaml()


def test_overrides():
    assert parse_override("budget.trials=5") == ("budget.trials", 5)
    assert parse_override("targets=[0.5, 0.3]") == ("targets", [0.5, 0.3])
    assert parse_override("data.root=") == ("data.root", None)
    for bad in ("trials", "=5", "a..b=1", "a=[1"):
        with pytest.raises(BadInput, match="--set"):
            parse_override(bad)
    with pytest.raises(BadRecipe, match=r"name\.first: name is 'x'"):
        load(PLAIN, {"name.first": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle is no known key; did you mean 'model'"),
        (
            {"budget": {"trial": 3}},
            r"budget\.trial is no known key; did you mean 'trials'\? Allowed here: trials, time",
        ),
        ({"budget": {"trials": 0}}, r"budget\.trials.*greater than or equal to 1"),
        ({"budget": {"time": "soon"}}, r"budget\.time: a duration is"),
        ({"targets": []}, "at least one target"),
        ({"targets": [1.2]}, r"targets\.0\.flops_fraction: .*less than or equal to 1"),
        ({"targets": [0.5, 0.5]}, "the same target is given twice"),
        ({"objectives": ["flops"]}, "objectives are accuracy and any of"),
        ({"objectives": ["accuracy", "speed"]}, r"objectives\.1: Input should be 'accuracy'"),
        ({"rungs": {"epochs": [1, 2]}}, "epochs must begin with 0"),
        ({"rungs": {"epochs": [0, 2, 1]}}, "epochs must rise"),
        ({"rungs": {"validation_samples": [10]}}, "one number for each of the 3 rungs"),
        ({"sampler": {"name": "grid"}}, r"sampler\.name: Input should be 'tpe'"),
        ({"executor": {"name": "slurm"}}, r"executor\.name"),
        ({"name": "a/b"}, "name: String should match"),
    ],
)
def test_mistakes_name_the_place(change, message):
    with pytest.raises(BadRecipe, match=message):
        load(PLAIN | change)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(BadInput, match=r"study file .*nowhere\.yaml does not exist"):
        load(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(UnknownName, match="Did you mean 'digits'"):
        load("digit")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [x\n")
    with pytest.raises(BadRecipe, match="not valid YAML"):
        load(broken)


def test_a_study_in_the_current_directory_is_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.yaml").write_text(yaml.safe_dump(PLAIN))
    monkeypatch.chdir(tmp_path)
    assert load("mine").config.name == "x"
    assert "mine" in shipped.names("studies")
    assert "digits" in shipped.names("studies")


def test_rungs_say_what_each_adds():
    rungs = load(PLAIN | {"rungs": {"epochs": [0, 0.5, 2], "validation_samples": [100, 500, None]}}).config.rungs
    assert [rungs.trained(k) for k in range(3)] == [0, 0.5, 1.5]
    assert [rungs.samples(k) for k in range(3)] == [100, 500, None]
    assert rungs.top == 2
