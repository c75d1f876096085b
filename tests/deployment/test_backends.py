"""Every back end runs the model that it was given, on the inputs that it was given."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from torch import nn

from autoprune.deployment import backends
from autoprune.errors import BadInput, MissingDependency, UnknownName

INPUTS = torch.linspace(-1, 1, 24).reshape(3, 8)


class Counting(nn.Module):
    """Notes the shapes it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(8, 4), list[tuple[int, ...]]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.seen.append(tuple(x.shape))
        out: torch.Tensor = self.linear(x)
        return out


def test_eager_is_one_forward_pass_a_call_without_gradients() -> None:
    model = Counting().train()
    call = backends.prepared("eager", model, INPUTS, threads=1, device="cpu")
    assert model.seen == []
    call()
    call()
    assert model.seen == [(3, 8), (3, 8)]
    assert not model.training


def test_onnxruntime_needs_the_model_only_to_prepare() -> None:
    model = Counting()
    call = backends.prepared("onnxruntime", model, INPUTS, threads=1, device="cpu")
    seen = len(model.seen)
    call()
    assert len(model.seen) == seen


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_runs() -> None:
    torch.compiler.reset()
    backends.prepared("compile", nn.Linear(8, 4), INPUTS, threads=1, device="cpu")()


def test_other_back_ends_and_devices_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'onnxruntime'"):
        backends.prepared("onnxruntim", nn.Linear(8, 4), INPUTS, threads=1, device="cpu")
    with pytest.raises(BadInput, match="on the CPU only, got device 'cuda'"):
        backends.prepared("onnxruntime", nn.Linear(8, 4), INPUTS, threads=1, device="cuda")


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"autoprune\[export\]"):
        backends.prepared("onnxruntime", nn.Linear(8, 4), INPUTS, threads=1, device="cpu")
