"""Walk the exported graph of a model and let the rules relate what they see."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autoprune.errors import TraceFailed
from autoprune.graph import adapters, causal, failures, origins, rules
from autoprune.graph.labels import Value, Why
from autoprune.graph.relations import Operation, Origin, Relations
from autoprune.graph.stepless import stepless

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def as_inputs(example_inputs: Any) -> Inputs:
    """A tensor or a tuple (or list) is positional, a mapping is by keyword."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@dataclass(frozen=True, eq=False)
class Traced:
    """What the walk found. program: of the forward pass in eval mode; digest: hash of graph, names and shapes."""

    relations: Relations
    state: dict[str, torch.Tensor]
    values: dict[str, Value]
    digest: str
    program: torch.export.ExportedProgram


def trace_relations(model: nn.Module, inputs: Inputs) -> Traced:
    """Export `model` (an own copy in eval mode) and apply the rules. Raises TraceFailed."""
    names, state, owners = _state(model)
    rel = Relations(dict(model.named_modules()), owners, batch_size(inputs))
    values = {name: Value(tuple(t.shape), tuple(rel.labels.new(n) for n in t.shape), name) for name, t in state.items()}
    rel.state = values
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    program = _export(model, inputs)
    _walk(program, rel, names, values, digest)
    if any(name not in rel.read and tensor.dim() for name, tensor in state.items()):
        _walk_training(model, inputs, rel, names, values)
    return Traced(rel, state, values, digest.hexdigest(), program)


def batch_size(inputs: Inputs) -> int:
    """Length of axis 0 of the first tensor input, one without any."""
    tensors = [item for item in (*inputs[0], *inputs[1].values()) if isinstance(item, torch.Tensor) and item.dim()]
    return int(tensors[0].shape[0]) if tensors else 1


def twice(inputs: Inputs) -> Inputs:
    """Two different samples for each one: in training, statistics over a batch of one do not exist."""

    def convert(item: Any) -> Any:
        if not isinstance(item, torch.Tensor) or not item.dim():
            return item
        return torch.cat([item, item + torch.randn_like(item) if item.is_floating_point() else item])

    result: Inputs = pytree.tree_map(convert, inputs)
    return result


def state_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the name by which the structure knows it."""
    return _state(model)[0]


def export(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """Export a model in the mode it is in. Raises TraceFailed."""
    return _export(model, inputs)


def scopes(node: torch.fx.Node) -> tuple[str, ...]:
    """Paths of the modules in whose calls a node lies, outermost first."""
    return _scopes(node)


def operator_name(target: Any) -> str:
    """Return the name of an operator without overload and in-place mark."""
    return _name(target)


def _walk_training(model: nn.Module, inputs: Inputs, rel: Relations, names: dict[str, str], values: Any) -> None:
    """Auxiliary heads run in training only: let them follow, without counting their cost."""
    rel.counting = False
    model.train()
    try:
        program = _export(model, twice(inputs))
    except TraceFailed:
        # Verification runs the training forward pass and freezes what breaks there.
        return
    finally:
        model.eval()
    _walk(program, rel, names, values, hashlib.sha256())


def _state(model: nn.Module) -> tuple[dict[str, str], dict[str, torch.Tensor], dict[str, tuple[str, ...]]]:
    """Every name -> the first name of the same tensor; tensors by first name; modules that hold each."""
    names: dict[str, str] = {}
    state: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}
    owners: dict[str, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            name = f"{path}.{leaf}" if path else leaf
            main = first.setdefault(id(tensor), name)
            names[name] = main
            state.setdefault(main, tensor)
            owners.setdefault(main, []).append(path)
    return names, state, {name: tuple(paths) for name, paths in owners.items()}


def _export(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings(), torch.no_grad(), failures.quiet_export(), causal.undetected(), stepless():
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs[0], inputs[1], strict=False)
    except Exception as error:
        raise TraceFailed(
            f"the model cannot be traced{failures.where(model, error)}: {failures.short(error)} "
            f"Allowed is a forward pass of torch operators whose steps do not depend on the data, which returns "
            f"tensors, tuples, dicts or data classes. Take the branch out of the traced model, or give an example "
            f"input that fits."
        ) from error


def _walk(
    program: torch.export.ExportedProgram,
    rel: Relations,
    names: dict[str, str],
    values: dict[str, Value],
    digest: Any,
) -> None:
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    seen: dict[torch.fx.Node, Any] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        seen[node] = _placeholder(node, held, names, values)
    for value in _values(_body(program.graph_module, seen, rel, digest)):
        rel.lock_all(value, Why("output", "", "output of the network"))


def _body(graph_module: torch.fx.GraphModule, seen: dict[torch.fx.Node, Any], rel: Relations, digest: Any) -> Any:
    """Walk the nodes of a graph whose placeholders are seen, and return its outputs."""
    for node in graph_module.graph.nodes:
        digest.update(f"{node.format_node()}\n".encode())
        if node.op == "output":
            return torch.fx.node.map_arg(node.args[0], lambda n: seen[n])
        if node.op == "get_attr":
            found = getattr(graph_module, str(node.target), None)
            seen[node] = found if isinstance(found, torch.fx.GraphModule) else None
        elif node.op == "call_function":
            inner = _region(node, seen)
            seen[node] = _call(node, seen, rel) if inner is None else _inlined(node, inner, seen, rel, digest)
    raise AssertionError("a graph ends with its output")


def _region(node: torch.fx.Node, seen: dict[torch.fx.Node, Any]) -> torch.fx.GraphModule | None:
    """The code under torch.autocast or torch.no_grad, which the export keeps as a graph of its own."""
    if str(node.target) not in ("wrap_with_autocast", "wrap_with_set_grad_enabled"):
        return None
    return next(found for n in node.all_input_nodes if isinstance(found := seen[n], torch.fx.GraphModule))


def _inlined(
    node: torch.fx.Node, inner: torch.fx.GraphModule, seen: dict[torch.fx.Node, Any], rel: Relations, digest: Any
) -> Any:
    places = inner.graph.find_nodes(op="placeholder")
    given = [seen.get(item, item) if isinstance(item, torch.fx.Node) else item for item in node.args]
    return _body(inner, dict(zip(places, given[len(given) - len(places) :], strict=True)), rel, digest)


def _placeholder(node: torch.fx.Node, held: Mapping[str, str], names: dict[str, str], values: dict[str, Value]) -> Any:
    if node.name in held:
        return values[names[held[node.name]]]
    fake = node.meta.get("val")
    if isinstance(fake, torch.Tensor):
        return Value(tuple(fake.shape), (None,) * fake.dim())
    return fake


def _call(node: torch.fx.Node, seen: dict[torch.fx.Node, Any], rel: Relations) -> Any:
    if getattr(node.target, "__name__", "") == "getitem":
        sequence, index = cast("tuple[Any, Any]", torch.fx.node.map_arg(node.args, lambda n: seen[n]))
        return sequence[index]
    op = _operation(node, seen, rel)
    for value in op.values():
        if value.source is not None:
            rel.read.add(value.source)
    results = rules.apply(op, rel)
    if results:
        adapters.apply(op, rel, results)
    fake = node.meta.get("val")
    if isinstance(fake, torch.Tensor):
        return results[0]
    if isinstance(fake, list | tuple):
        remaining = iter(results)
        return [next(remaining) if isinstance(item, torch.Tensor) else item for item in fake]
    return fake


def _operation(node: torch.fx.Node, seen: dict[torch.fx.Node, Any], rel: Relations) -> Operation:
    args = cast("tuple[object, ...]", torch.fx.node.map_arg(node.args, lambda n: seen[n]))
    kwargs = cast("dict[str, object]", torch.fx.node.map_arg(node.kwargs, lambda n: seen[n]))
    schema = getattr(node.target, "_schema", None)
    arguments: dict[str, object] = {}
    if schema is None:
        arguments = {str(i): item for i, item in enumerate(args)} | dict(kwargs)
    else:
        for position, argument in enumerate(schema.arguments):
            if position < len(args):
                arguments[argument.name] = args[position]
            else:
                arguments[argument.name] = kwargs.get(argument.name, argument.default_value)
    fake = node.meta.get("val")
    tensors = [item for item in (fake if isinstance(fake, list | tuple) else [fake]) if isinstance(item, torch.Tensor)]
    scopes = _scopes(node)
    if not all(isinstance(n, int) for item in tensors for n in item.shape):
        place = f" in module {scopes[-1]!r}" if scopes and scopes[-1] else ""
        raise TraceFailed(
            f"the model cannot be traced{place}: {node.target} makes a tensor whose size depends on the data. "
            f"Allowed are sizes that follow from those of the input. Take this step out of the traced model."
        )
    return Operation(
        name=_name(node.target),
        target=_target(node.target),
        module=scopes[-1] if scopes else "",
        scopes=scopes,
        arguments=arguments,
        shapes=tuple(tuple(item.shape) for item in tensors),
        pointwise=torch.Tag.pointwise in getattr(node.target, "tags", ()),
        origin=_query_origin(node, scopes, seen, rel),
        unused=not node.users,
        of=_name(node.args[0].target) if node.args and isinstance(node.args[0], torch.fx.Node) else "",
    )


def _query_origin(
    node: torch.fx.Node, scopes: tuple[str, ...], seen: dict[torch.fx.Node, Any], rel: Relations
) -> Origin | None:
    """Only attention asks where its first argument comes from."""
    name, module = _name(node.target), rel.modules.get(scopes[-1]) if scopes else None
    if isinstance(module, torch.nn.MultiheadAttention) and name in ("bmm", "baddbmm"):
        # With its weights computed: queries, which it scales, times keys. Weights times values come from a softmax.
        query = node.args[-2]
    elif name == "scaled_dot_product_attention":
        query = node.args[0]
    else:
        return None
    return origins.origin(query, seen, rel) if isinstance(query, torch.fx.Node) else None


def _target(target: Any) -> str:
    # The text of a Python function has its address, which is another one in each process.
    text = str(target)
    return str(getattr(target, "__name__", type(target).__name__)) if " at 0x" in text else text


def _name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    if packet is None or target.namespace != "aten":
        return _target(target)
    name = str(packet.__name__)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _scopes(node: torch.fx.Node) -> tuple[str, ...]:
    # A second call of the same module is recorded as 'path@1'.
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(path.split("@")[0] for path, _ in stack.values())


def _values(found: Any) -> Iterator[Value]:
    if isinstance(found, Value):
        yield found
    elif isinstance(found, Mapping):
        for item in found.values():
            yield from _values(item)
    elif isinstance(found, Iterable) and not isinstance(found, str):
        for item in found:
            yield from _values(item)
