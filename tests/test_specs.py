from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from autoprune.errors import BadInput
from autoprune.specs import DataSpec, ModelSpec, TaskSpec, TrainSpec, as_spec, expand_path


@pytest.mark.parametrize(
    ("cls", "value", "message"),
    [
        (ModelSpec, {"name": "lenet", "weigths": "x"}, "here: weigths is no known key; did you mean 'weights'?"),
        (ModelSpec, {}, "here: name: Field required"),
        (ModelSpec, {"name": 3}, "here: name: Input should be a valid string, got 3"),
        (ModelSpec, {"name": "lenet", "xyz": 1}, "here: xyz is no known key; allowed here: name, arguments, weights"),
        (TaskSpec, {"loss": "a:b"}, "here: loss and metric are given together"),
        (TrainSpec, {"batch_size": 1}, "here: batch_size: Input should be greater than or equal to 2, got 1"),
        (DataSpec, {"name": "digits", "root": "/x"}, "digits takes no root; it takes augment, name, seed"),
        (DataSpec, {"name": "image_folder"}, "image_folder needs root"),
        (DataSpec, {"name": "image_folder", "root": "/x", "download": True}, "takes no download"),
        (DataSpec, {"name": "CIFAR10", "mean": [0.5]}, "mean and std are given together"),
        (DataSpec, {"name": "CIFAR10", "mean": [0.5], "std": [1, 1]}, "mean has 1 values, std has 2"),
        (DataSpec, {"name": "CIFAR10", "mean": [0.5], "std": [0]}, "every std must be greater than 0"),
        (DataSpec, {"name": "a.b:c", "size": 3}, "a.b:c takes no size"),
        (DataSpec, {"name": "digits", "validation_fraction": 1.0}, "should be less than 1, got 1.0"),
    ],
)
def test_mistakes_are_told_by_place(cls: Any, value: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        as_spec(cls, value, "here")
    assert message in str(caught.value)


def test_every_mistake_is_told() -> None:
    with pytest.raises(BadInput) as caught:
        as_spec(TrainSpec, {"epochs": 0, "lr": "fast"}, "train")
    assert len(str(caught.value).splitlines()) == 2


def test_paths_expand_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPRUNE_SOME_FOLDER", "/data")
    assert str(expand_path("${AUTOPRUNE_SOME_FOLDER}/x.zip", "data.root")) == "/data/x.zip"
    with pytest.raises(BadInput, match=r"data\.root .* AUTOPRUNE_NOT_SET is not set"):
        expand_path("$AUTOPRUNE_NOT_SET/x", "data.root")


def test_reading_specs_does_not_import_torch() -> None:
    code = "import sys, autoprune.data, autoprune.models, autoprune.specs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
