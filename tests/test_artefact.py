"""An artefact comes back as it went, and says clearly when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from autoprune import artefact, rooms
from autoprune.artefact import DataRecord, Manifest
from autoprune.compressed import Compressed, factorise
from autoprune.errors import BadInput, WrongArtefact
from autoprune.graph import Selection, trace
from autoprune.lowrank import LowRank
from autoprune.lowrank.svd import Svd
from autoprune.models import build_model
from autoprune.recipe import Recipe
from autoprune.specs import ModelSpec

SPEC = ModelSpec(name="digits_resnet", arguments={"num_classes": 10})


@pytest.fixture(scope="module")
def compressed() -> Compressed:
    """digits_resnet at half width, one layer factorised, with weights unlike the initial ones."""
    model = build_model(SPEC, seed=7)
    structure = trace(model, torch.zeros(2, 1, 8, 8))
    small = structure.cut(model, 0.5)
    layer = next(x.name for x in structure.layers if x.name == "layer3.conv2")
    factors = factorise(small, Svd(), {layer: 4})
    return Compressed(model=small.eval(), selection=structure.selection(0.5), factors=factors)


@pytest.fixture
def saved(compressed: Compressed, tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    artefact.save(
        folder,
        compressed,
        Manifest(
            model=SPEC,
            recipe=Recipe(),
            metrics={"accuracy": 0.5},
            seeds={"trial": 3},
            trial=4,
            study="digits",
        ),
    )
    return folder


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8))
    return found


def test_comes_back_in_this_process(compressed: Compressed, saved: Path) -> None:
    loaded = artefact.load(saved)
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(compressed.model))


def test_comes_back_in_a_fresh_process(compressed: Compressed, saved: Path) -> None:
    code = (
        "import sys, torch, autoprune; torch.set_num_threads(1); m = autoprune.load(sys.argv[1]);"
        "y = m(torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)); print(y.double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(outputs(compressed.model).double().sum()), rel=1e-6)


def test_manifest_comes_back(saved: Path) -> None:
    found = artefact.read_manifest(saved)
    assert (found.model, found.trial, found.study, found.seeds) == (SPEC, 4, "digits", {"trial": 3})
    assert found.recipe == Recipe().plain()
    assert found.factors[0].layer == "layer3.conv2"
    assert set(found.versions) == {"autoprune", "torch", "python"}


def test_goes_on_from_where_it_was(compressed: Compressed, saved: Path, tmp_path: Path) -> None:
    again = artefact.load_compressed(saved)
    assert again.factors == tuple(compressed.factors)
    artefact.save(tmp_path / "again", again, artefact.read_manifest(saved))
    assert torch.equal(outputs(artefact.load(tmp_path / "again")), outputs(compressed.model))


def test_keeps_dtype(tmp_path: Path) -> None:
    half = nn.Sequential(nn.Linear(3, 2)).to(torch.float64)
    artefact.save(tmp_path, uncut(half), Manifest())
    assert artefact.load(tmp_path, nn.Sequential(nn.Linear(3, 2)))[0].weight.dtype == torch.float64


def test_base_weights_file_is_not_needed(compressed: Compressed, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"weights": "/nowhere/gone.safetensors"})
    artefact.save(tmp_path, compressed, Manifest(model=spec))
    assert torch.equal(outputs(artefact.load(tmp_path)), outputs(compressed.model))


def test_number_of_classes_comes_from_the_data(tmp_path: Path) -> None:
    model = build_model({"name": "digits_resnet"}, 7)
    spec, data = ModelSpec(name="digits_resnet"), DataRecord(name="x", fingerprint="0", num_classes=7)
    artefact.save(tmp_path, uncut(model), Manifest(model=spec, data=data))
    assert artefact.load(tmp_path).linear.out_features == 7


def test_model_object_is_given_and_not_changed(compressed: Compressed, tmp_path: Path) -> None:
    artefact.save(tmp_path, compressed, Manifest())
    model = build_model(SPEC)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert torch.equal(outputs(artefact.load(tmp_path, model)), outputs(compressed.model))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_model_object_missing(compressed: Compressed, tmp_path: Path) -> None:
    artefact.save(tmp_path, compressed, Manifest())
    with pytest.raises(WrongArtefact, match=r"digits_resnet:DigitsResNet.*autoprune\.load\(folder, model\)"):
        artefact.load(tmp_path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4, bias=False)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("scale", torch.tensor(2.0))


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    artefact.save(tmp_path, uncut(model), Manifest())
    assert set(load_file(tmp_path / "model.safetensors")) == {"encode.weight", "scale"}
    other = Tied()
    loaded = artefact.load(tmp_path, other)
    assert isinstance(loaded, Tied)
    assert loaded.decode.weight is loaded.encode.weight
    assert torch.equal(loaded.encode.weight, model.encode.weight)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return {"anything": 1}

    with pytest.raises(BadInput, match="_extra_state"):
        artefact.save(tmp_path, uncut(Odd(2, 2)), Manifest())


def test_another_base_model_names_tensor_and_shapes(compressed: Compressed, saved: Path) -> None:
    wider = build_model({"name": "digits_resnet", "arguments": {"in_channels": 3, "num_classes": 10}})
    with pytest.raises(WrongArtefact, match=r"conv1\.weight.*\(16, 3, 3, 3\).*\(16, 1, 3, 3\)"):
        artefact.load(saved, wider)


def test_uncut_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    artefact.save(tmp_path, uncut(nn.Linear(3, 2)), Manifest())
    with pytest.raises(WrongArtefact, match=r"weight has shape \(2, 3\).*but \(2, 5\)"):
        artefact.load(tmp_path, nn.Linear(5, 2))


def test_other_names_are_named(tmp_path: Path) -> None:
    artefact.save(tmp_path, uncut(nn.Linear(3, 2)), Manifest())
    with pytest.raises(WrongArtefact, match=r"0\.weight is missing.*weight is not in the model"):
        artefact.load(tmp_path, nn.Sequential(nn.Linear(3, 2)))


@pytest.mark.parametrize("name", ["autoprune.json", "model.safetensors", "recipe.yaml"])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(WrongArtefact, match=name):
        artefact.load(saved)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WrongArtefact, match="is no folder"):
        artefact.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", "format_version None"),
        ('{"format_version": 99, "versions": {"autoprune": "9.9"}}', r"99.*reads 1.*autoprune 9\.9"),
        ('{"format_version": 1, "surprise": 2}', "surprise"),
        ('{"format_version": 1, "selection": 3}', "selection"),
    ],
)
def test_damaged_manifest(saved: Path, text: str, message: str) -> None:
    (saved / "autoprune.json").write_text(text)
    with pytest.raises(WrongArtefact, match=message):
        artefact.load(saved)


def test_damaged_weights(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(WrongArtefact, match="damaged"):
        artefact.load(saved)


def test_pickled_weights_are_never_opened(saved: Path) -> None:
    torch.save(nn.Linear(1, 1), saved / "model.safetensors")
    content = json.loads((saved / "autoprune.json").read_text())
    content["weights_sha256"] = artefact._sha256(saved / "model.safetensors")
    (saved / "autoprune.json").write_text(json.dumps(content))
    with pytest.raises(WrongArtefact, match="not a safetensors file"):
        artefact.load(saved)


def test_function_of_pythons_own_library_is_not_called(saved: Path) -> None:
    content = json.loads((saved / "autoprune.json").read_text())
    content["model"] = {"name": "os:system", "arguments": {"command": "false"}}
    (saved / "autoprune.json").write_text(json.dumps(content))
    with pytest.raises(WrongArtefact, match="os:system"):
        artefact.load(saved)


def test_killed_between_manifest_and_weights(compressed: Compressed, saved: Path) -> None:
    """The new weights wait under their temporary name until the manifest is in place."""
    new = saved / "model.safetensors.new"
    (saved / "model.safetensors").rename(new)
    save_file({"old": torch.zeros(1)}, saved / "model.safetensors")
    assert torch.equal(outputs(artefact.load(saved)), outputs(compressed.model))


def test_killed_before_the_manifest(compressed: Compressed, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    other = Compressed(model=compressed.model, selection=Selection({}, {}, {}), factors=())
    with monkeypatch.context() as patched:
        patched.setattr(artefact, "_as_json", killed)
        with pytest.raises(KeyboardInterrupt):
            artefact.save(saved, other, Manifest(model=SPEC))
    assert torch.equal(outputs(artefact.load(saved)), outputs(compressed.model))


def test_user_function_by_reference(compressed: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_models")
    module.make = lambda: build_model(SPEC)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", module)
    artefact.save(tmp_path, compressed, Manifest(model=ModelSpec(name="my_models:make")))
    assert torch.equal(outputs(artefact.load(tmp_path)), outputs(compressed.model))


def uncut(model: nn.Module) -> Compressed:
    return Compressed(model=model, selection=Selection({}, {}, {}), factors=())


@pytest.mark.parametrize("name", rooms.names("lowrank"))
def test_every_factorisation_comes_back(name: str, tmp_path: Path) -> None:
    model = build_model(SPEC, seed=7)
    structure = trace(model, torch.zeros(2, 1, 8, 8))
    small = structure.cut(model, 0.5)
    factors = factorise(small, cast(LowRank, rooms.build("lowrank", name)), {"layer2.conv1": 3, "layer3.conv2": 4})
    compressed = Compressed(model=small.eval(), selection=structure.selection(0.5), factors=factors)
    artefact.save(tmp_path / "small", compressed, Manifest(model=SPEC, recipe=Recipe()))
    assert torch.equal(outputs(artefact.load(tmp_path / "small")), outputs(small))


def test_skipped_blocks_come_back_in_a_fresh_process(tmp_path: Path) -> None:
    spec = ModelSpec(name="resnet20_cifar", arguments={"num_classes": 10, "in_channels": 1})
    model = build_model(spec, seed=7)
    structure = trace(model, torch.zeros(2, 1, 8, 8), verify=False)
    skip = ["layer1.1", "layer3.2"]
    keep = {name: range(0, size, 2) for name, size in zip(structure.names, structure.group_sizes, strict=True)}
    keep = {name: list(kept) for name, kept in keep.items() if name in structure.without_blocks(skip).names}
    small = structure.cut(model, keep, skip).eval()
    factors = factorise(small, Svd(), {"layer2.1.conv2": 4})
    compressed = Compressed(model=small, selection=structure.selection(keep, skip), factors=factors)
    artefact.save(tmp_path / "small", compressed, Manifest(model=spec, recipe=Recipe()))
    loaded = artefact.load_compressed(tmp_path / "small")
    assert torch.equal(outputs(loaded.model), outputs(small))
    assert loaded.selection.skipped == {"layer1.1": 0, "layer3.2": 0}
    code = (
        "import sys, torch, autoprune; torch.set_num_threads(1); m = autoprune.load(sys.argv[1]);"
        "print(m(torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)).double().sum().item(), m.layer1[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "small")], capture_output=True, text=True, check=True
    )
    total, block = done.stdout.split(maxsplit=1)
    assert float(total) == pytest.approx(float(outputs(small).double().sum()), rel=1e-6)
    assert block.strip() == "Skipped(BasicBlock)"
