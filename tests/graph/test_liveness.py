from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from autoprune.graph.flow import operator_name
from autoprune.graph.liveness import unneeded
from autoprune.graph.tracer import export


class Branches(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.how == "own memory":
            hidden.relu_()
        elif self.how == "shared":
            # Writes into what the shortcut carries, through a view of it.
            x = x * 1
            x.view(-1).mul_(2)
            hidden = self.first(x)
        elif self.how == "dropout":
            # In eval mode dropout hands on what it was given.
            x = x * 1
            hidden = self.first(nn.functional.dropout(x, training=self.training).relu_())
        return x + self.second(hidden)


def left_out(how: str) -> list[str]:
    """The operators that need not run once the result of the last layer is given."""
    program = export(Branches(how).eval(), ((torch.zeros(2, 4),), {}))
    nodes = list(program.graph.nodes)
    last = next(node for node in reversed(nodes) if operator_name(node) == "linear")
    return [operator_name(node) for node in nodes if node in unneeded(nodes, {last})]


def test_a_given_result_needs_nothing() -> None:
    assert left_out("plain") == ["linear", "linear"]


def test_writing_into_memory_of_its_own_needs_nothing() -> None:
    assert left_out("own memory") == ["linear", "relu", "linear"]


def test_writing_into_what_the_output_needs_is_needed() -> None:
    assert left_out("shared") == ["linear", "linear", "linear"]
    assert left_out("dropout") == ["linear", "linear", "linear"]


def test_without_given_results_only_dead_code_is_left_out() -> None:
    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.exp()
            return x + 1

    nodes: list[Node] = list(export(Dead(), ((torch.zeros(2),), {})).graph.nodes)
    assert {operator_name(node) for node in unneeded(nodes, ())} <= {"exp"}


def test_a_given_result_that_is_written_into_another_is_run() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            branch = y[:1].relu_()
            return y + branch * 2

    nodes: list[Node] = list(export(InPlace(), ((torch.zeros(2),), {})).graph.nodes)
    given = {node for node in nodes if operator_name(node) == "relu"}
    assert unneeded(nodes, given) == set()
