"""A cut model compiles like any other, also where a view asks for sizes that its code does not know."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.graph import Structure, trace

from .transformers import ATTENTION, transformer

KEEP = {"head": [0, 2], "head_dim": [0, 2], "channel": [1, 3, 4, 6]}


@cache
def small(name: str) -> tuple[nn.Module, Any, Structure]:
    model, example = transformer(name)
    structure = trace(model, example)
    keep = {name: KEEP[kind] for name, kind in zip(structure.names, structure.kinds, strict=True)}
    return structure.cut(model, keep).eval(), example, structure


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ATTENTION)
def test_compiled_cut_model_is_the_same_function(name: str) -> None:
    model, example, structure = small(name)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=name != "constant")(example)
        torch.testing.assert_close(compiled, model(example))
    assert (name in ("constant", "built")) == bool(structure.resized)
