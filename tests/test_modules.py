from __future__ import annotations

import pytest
from torch import nn

from autoprune.errors import UnknownName
from autoprune.modules import replace_module


def test_a_nested_module_is_replaced() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(2, 3)), nn.ReLU())
    new = nn.Linear(2, 3)
    replace_module(model, "0.1", new)
    assert model.get_submodule("0.1") is new
    assert list(dict(model.named_modules())) == ["", "0", "0.0", "0.1", "1"]


@pytest.mark.parametrize("name", ["0", "1", "2.a"])
def test_a_shared_module_is_replaced_wherever_it_stands(name: str) -> None:
    shared, new = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(shared, shared, nn.ModuleDict({"a": shared}))
    replace_module(model, name, new)
    assert all(model.get_submodule(n) is new for n in ("0", "1", "2.a"))


def test_an_unknown_module_suggests_the_nearest() -> None:
    model = nn.ModuleDict({"conv1": nn.ReLU(), "linear": nn.ReLU()})
    with pytest.raises(UnknownName, match="Did you mean 'conv1'"):
        replace_module(model, "conv", nn.ReLU())


def test_the_model_itself_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="the model itself"):
        replace_module(nn.ReLU(), "", nn.ReLU())
