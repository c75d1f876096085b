"""Where units are written and read: what masking makes zero is zero there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from autoprune.graph import Structure, trace
from autoprune.graph.flow import Flow, Tap
from autoprune.graph.tracer import as_inputs

from .networks import networks

NAMES = tuple(networks())


def seen(model: nn.Module, structure: Structure, inputs: Any) -> tuple[Flow, dict[str, Tensor]]:
    flow = Flow(model, structure, inputs)
    results: dict[str, Tensor] = {}

    def see(node: Node, result: Any) -> Any:
        if isinstance(result, Tensor):
            results[node.name] = result.clone()  # a later operator may write into it
        return result

    with torch.no_grad():
        flow.run(inputs, see)
    return flow, results


def case(name: str) -> tuple[nn.Module, Any, Structure]:
    model, inputs = networks()[name]
    inputs = pytree.tree_map(lambda t: torch.randn_like(t) if t.is_floating_point() else t, inputs)
    return model.eval(), inputs, trace(model, inputs, verify=False)


@pytest.mark.parametrize("name", NAMES)
def test_running_the_flow_is_running_the_model(name: str) -> None:
    model, inputs, structure = case(name)
    _, results = seen(model, structure, inputs)
    arguments, keywords = as_inputs(inputs)
    with torch.no_grad():
        expected = pytree.tree_leaves(model(*arguments, **keywords))[0]
    assert any(r.shape == expected.shape and torch.allclose(r, expected) for r in results.values())


def zero_units(tap: Tap, results: dict[str, Tensor]) -> list[int]:
    values = tap.values(results[tap.node]).transpose(0, 1).flatten(1)
    return (values == 0).all(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("name", NAMES)
def test_masked_units_are_zero_where_they_are_written_and_read(name: str) -> None:
    model, inputs, structure = case(name)
    flow, before = seen(model, structure, inputs)
    for group in structure.groups:
        taps = [t for t in (*flow.written(group), *flow.read(group)) if len(t.indices) == group.size]
        # An auxiliary head is no part of the forward pass.
        assert taps or name in ("auxiliary_head", "normalised_auxiliary")
        live = [unit for unit in range(group.size) if any(unit not in zero_units(t, before) for t in taps)]
        for unit in live[:1]:
            masked = structure.mask(model, {group.name: [u for u in range(group.size) if u != unit]})
            _, after = seen(masked, structure, inputs)
            for tap in taps:
                assert unit in zero_units(tap, after), (group.name, tap.node)


def test_factors_that_scale_maps_are_no_maps() -> None:
    model, inputs, structure = case("squeeze_excite")
    flow, _ = seen(model, structure, inputs)
    assert [tap.node for tap in flow.written(structure.group("0.0"))] == ["relu"]
