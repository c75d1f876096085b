"""Bounds of everything that a network computes on a box of inputs, and of the margins between its classes.

The network is exported once, in eval mode; bounds are then taken with the weights that the model has at that moment, so
that a training can differentiate through them. Batch norms take their running statistics, in training too.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from autoprune.certified import rules
from autoprune.certified.box import Interval, only_tensor
from autoprune.errors import AutopruneError, NotApplicable
from autoprune.graph import failures, tracer
from autoprune.programs import program_of

_NORM = "_native_batch_norm_legit_no_training"


@dataclass(frozen=True)
class PreActivation:
    """What a ReLU reads: its interval, (N, C, ...), and the batch norm's scale before it, (C,), or None."""

    interval: Interval
    scale: Tensor | None


@dataclass(frozen=True)
class Bounds:
    """Bounds on a box. head: what the last linear layer reads, its weight (K, F) and bias (K,), None without one."""

    output: Interval
    pre_activations: tuple[PreActivation, ...]
    head: tuple[Interval, Tensor, Tensor | None] | None

    def margins(self, labels_N: Tensor) -> Tensor:
        """Return lower bounds of logit y minus logit k, (N, K), for the label y of each sample; 0 where k is y.

        Where the network ends in a linear layer the difference is taken inside of it: rows W_y - W_k, bounded once.
        """
        count = self.output.low.shape[1]
        own_NK = torch.nn.functional.one_hot(labels_N, count).bool()
        if self.head is None:
            lowest = self.output.low.gather(1, labels_N[:, None]) - self.output.high
        else:
            hidden, weight_KF, bias_K = self.head
            rows_NKF = weight_KF[labels_N][:, None] - weight_KF[None]
            middle = torch.einsum("nkf,nf->nk", rows_NKF, hidden.middle)
            lowest = middle - torch.einsum("nkf,nf->nk", rows_NKF.abs(), hidden.radius)
            if bias_K is not None:
                lowest = lowest + bias_K[labels_N][:, None] - bias_K[None]
        return lowest.masked_fill(own_NK, 0.0)


class Bounded:
    """A network whose values can be bounded.

    model: kept, not copied; it is exported now and may train afterwards, as long as its shapes stay.
    Raises NotApplicable, naming operator and module, for a network that the rules do not cover.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        example = only_tensor(example_inputs)
        self._model = model
        program = _functional(model, example)
        self._graph = program.graph
        signature = program.graph_signature
        self._state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._constants = {
            name: program.constants[of] for name, of in signature.inputs_to_lifted_tensor_constants.items()
        }
        (last,) = (node for node in self._graph.nodes if node.op == "output")
        results = [node for node in torch.utils._pytree.tree_leaves(last.args) if isinstance(node, Node)]
        if len(results) != 1 or not isinstance(results[0].meta.get("val"), Tensor) or results[0].meta["val"].ndim != 2:
            raise NotApplicable("a model can be certified when its output is one tensor of logits, (N, classes)")
        self._output = results[0]
        with torch.no_grad():
            self.on(Interval(example, example))

    def on(self, box: Interval) -> Bounds:
        """Return the bounds on a box, differentiable in the model's weights."""
        state = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        values: dict[Node, Any] = {}
        found: list[PreActivation] = []
        head = None
        for node in self._graph.nodes:
            if node.op == "placeholder":
                values[node] = self._given(node, state, box)
            elif node.op == "call_function":
                args, kwargs = (map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
                name = tracer.operator_name(node.target)
                if name == "relu" and isinstance(args[0], Interval):
                    found.append(PreActivation(args[0], _scale_before(node, values)))
                if name == "linear" and node is self._output:
                    head = (args[0], args[1], args[2] if len(args) > 2 else None)
                values[node] = _applied(node, name, args, kwargs)
        return Bounds(values[self._output], tuple(found), head)

    def _given(self, node: Node, state: Mapping[str, Tensor], box: Interval) -> Any:
        if node.name in self._state:
            return state[self._state[node.name]]
        return self._constants.get(node.name, box)


def _functional(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return the model's graph without operators that change their inputs in place."""
    try:
        own = copy.deepcopy(model).eval()
        # they watch calls of the model, and the trace is none
        own._forward_pre_hooks.clear()
        own._forward_hooks.clear()
        with warnings.catch_warnings(), torch.no_grad(), failures.quiet_export():
            warnings.simplefilter("ignore")
            program: torch.export.ExportedProgram = program_of(own, example).run_decompositions({})
            return program
    except AutopruneError:
        raise
    except Exception as error:
        raise NotApplicable(f"{type(model).__name__} cannot be bounded: {failures.short(error)}") from error


def _applied(node: Node, name: str, args: Any, kwargs: Any) -> Any:
    leaves = torch.utils._pytree.tree_leaves((args, kwargs), is_leaf=lambda value: isinstance(value, Interval))
    target: Any = node.target
    if name == "getitem" or target.__name__ == "getitem":
        return args[0][args[1]]
    if name == "sym_size" and isinstance(args[0], Interval):
        return args[0].low.shape[args[1]]
    if not any(isinstance(leaf, Interval) for leaf in leaves):
        return target(*args, **kwargs)
    try:
        if name in rules.MONOTONE:
            return rules.monotone(target, args, kwargs)
        if name in rules.AFFINE:
            return rules.affine(target, args, kwargs)
        if name in rules.OTHERS:
            return rules.OTHERS[name](target, args, kwargs)
    except TypeError as error:
        raise NotApplicable(f"{_told(node, name)}: {error}; it cannot be bounded") from error
    raise NotApplicable(f"{_told(node, name)} has no rule for intervals, so that nothing can be proven")


def _told(node: Node, name: str) -> str:
    paths = tracer.scopes(node)
    return f"operator {name}" + (f" in {paths[-1]}" if paths and paths[-1] else "")


def _scale_before(node: Node, values: Mapping[Node, Any]) -> Tensor | None:
    """Return the scale of the batch norm whose output a ReLU reads, without a gradient."""
    source = node.args[0]
    norm = source.args[0] if isinstance(source, Node) and source.op == "call_function" and source.args else None
    if not isinstance(norm, Node) or tracer.operator_name(norm.target) != _NORM or norm.args[1] is None:
        return None
    scale = values[norm.args[1]]  # type: ignore[index]
    return scale.detach() if isinstance(scale, Tensor) else None
