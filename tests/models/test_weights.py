from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.errors import BadInput
from autoprune.models.weights import load_weights


def network(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def nested(state: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": state}


def prefixed(state: dict[str, Any]) -> dict[str, Any]:
    return {"model": {f"module.{name}": tensor for name, tensor in state.items()}}


def without_counters(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


@pytest.mark.parametrize("wrapped", [dict, nested, prefixed, without_counters])
def test_usual_checkpoints_load(tmp_path: Path, wrapped: Any) -> None:
    source, target = network(), network()
    torch.save(wrapped(dict(source.state_dict())), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(source[0].weight, target[0].weight)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no weights file"):
        load_weights(network(), tmp_path / "none.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_damaged_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no checkpoint at all")
    with pytest.raises(BadInput, match=r"is not a safetensors file|cannot be read"):
        load_weights(network(), tmp_path / name)


def test_a_pickled_model_is_never_unpickled(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"never unpickled. Save model\.state_dict\(\)"):
        load_weights(network(), tmp_path / "w.pt")


def test_content_without_tensors_is_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"hold no state dict \(keys epoch\)"):
        load_weights(network(), tmp_path / "w.pt")


def test_names_and_shapes_that_differ_are_told(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    state["extra.weight"] = state.pop("0.bias")
    torch.save(state, tmp_path / "w.pt")
    target = network(width=4)
    before = target[0].weight.clone()
    with pytest.raises(BadInput) as caught:
        load_weights(target, tmp_path / "w.pt")
    text = str(caught.value)
    assert "1 missing (0.bias)" in text
    assert "1 unexpected (extra.weight)" in text
    assert "5 of another shape (0.weight (3, 2) instead of (4, 2), 1.weight (3,) instead of (4,)" in text
    assert torch.equal(target[0].weight, before)
