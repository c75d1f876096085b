"""Importance sent backwards from the final responses through the absolute values of the weights.

The responses are what the last layers read. With B the linear map of one operator, biases left out, a score s behind
it is |B|^T s before it. All operators together are a linear network, so that the scores are gradients:

    convolution, linear        the absolute weight                batch norm          |gamma| / sqrt(var + eps)
    addition                   to all summands                    constant factor     its absolute value
    average, flatten, join     as they are                        max pooling         spread over the window
    activation                 its Lipschitz constant

Beyond convolutional networks: layer and group norm scale by |gamma| over the deviation measured on a few samples; of a
product of two activations each factor has the other's measured mean size; attention passes scores on to values, evenly
over tokens, and not to queries and keys.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from autoprune.data.split import map_tensors
from autoprune.errors import NotApplicable
from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Structure
from autoprune.graph.flow import Flow, Tap, is_layer, operator_name

SAMPLES = 4
"""Samples that deviations and sizes of factors are measured on."""

_LIPSCHITZ: Mapping[str, float] = {
    **dict.fromkeys(("relu", "relu6", "hardtanh", "tanh", "softplus", "softsign", "log_sigmoid", "threshold"), 1.0),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach"), 1.0),
    **dict.fromkeys(("to", "_to_copy", "type_as", "leaky_relu", "elu", "celu", "prelu", "hardshrink"), 1.0),
    "gelu": 1.129,
    "silu": 1.0999,
    "mish": 1.0886,
    "hardswish": 1.5,
    "selu": 1.7581,
    "sigmoid": 0.25,
    "hardsigmoid": 1 / 6,
}
_AS_IT_IS = frozenset(
    (
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "view_as",
        "permute",
        "transpose",
        "swapaxes",
        "t",
        "numpy_T",
        "expand",
        "expand_as",
        "broadcast_to",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "getitem",
        "mean",
        "sum",
        "roll",
        "pixel_shuffle",
        "channel_shuffle",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
    )
)

FinalScores = Callable[[str, Tensor], Tensor]
"""Name of the weight that reads a final response, and its absolute values (K, D) -> the responses' scores (D,)."""


@dataclass(frozen=True)
class Sweep:
    """How scores travel: keep_fraction of every group passes them on; max pooling hands on to the `pool`."""

    keep_fraction: float = 1.0
    pool: str = "uniform"


def final_responses(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather the final responses (N, D) by the weight that reads them, in eval mode; positions are averaged."""
    probe = copy.deepcopy(model).to(source.device).eval().requires_grad_(False)
    batches = source.draw()
    inputs, _ = next(batches)
    flow = Flow(probe, structure, inputs)
    layers = final_layers(flow)
    found: dict[str, list[Tensor]] = {}

    def see(node: Node, result: Any) -> Any:
        for layer in layers:
            if layer.args[0] is node:
                found.setdefault(cast(str, flow.weight_of(layer)), []).append(_averaged(layer, result))
        return result

    with torch.no_grad():
        flow.run(inputs, see)
        for inputs, _ in batches:
            flow.run(inputs, see)
    return {weight: torch.cat(parts) for weight, parts in found.items()}


def _averaged(layer: Node, response: Tensor) -> Tensor:
    last = response if operator_name(layer) == "linear" else response.movedim(1, -1)
    mean = last.flatten(1, -2).mean(dim=1) if last.dim() > 2 else last
    return mean.detach().cpu().float()


def final_layers(flow: Flow) -> list[Node]:
    """Return the layers that lead to the output through no other layer."""
    reaches: dict[Node, bool] = {}  # whether a node leads to the output without another layer
    for node in reversed(flow.nodes):
        reaches[node] = node.op == "output" or any(reaches[u] and not _weighted(flow, u) for u in node.users)
    return [n for n in flow.nodes if reaches[n] and _weighted(flow, n)]


def _weighted(flow: Flow, node: Node) -> bool:
    return flow.weight_of(node) is not None


def propagate(
    model: nn.Module, structure: Structure, inputs: Any, final: FinalScores, sweep: Sweep
) -> dict[str, list[Tensor]]:
    """Return the score of every value of a group's units where they are written, (C, m, ...) per producer, float64.

    inputs: a batch to measure on. With a keep_fraction below one the units that score lowest in a group pass nothing
    on; a group with several producers is decided by a first sweep without that. Raises NotApplicable for an operator
    that no score can pass.
    """
    few = map_tensors(inputs, lambda t: t[:SAMPLES].double() if t.is_floating_point() else t[:SAMPLES])
    flow = Flow(copy.deepcopy(model).double().eval().requires_grad_(False), structure, few)
    taps = {g.name: flow.written(g) for g in structure.groups}
    scored = {n: final(cast(str, flow.weight_of(n)), _weight(flow, n)) for n in final_layers(flow)}
    passing = _Passing(flow, few, sweep.pool)
    every = _swept(passing, taps, scored, {})
    if sweep.keep_fraction >= 1:
        return every
    masks: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, found in taps.items():
        if len(found) > 1:
            decided = _lowest(units_of(every[name]), sweep.keep_fraction)
            masks[name] = lambda _, gone=decided: gone  # type: ignore[misc]
        else:
            masks[name] = lambda score_C: _lowest(score_C, sweep.keep_fraction)
    masked = _swept(passing, taps, scored, masks)
    return {name: every[name] if len(taps[name]) > 1 else masked[name] for name in taps}


def units_of(scores: list[Tensor]) -> Tensor:
    """Return (C,): all values of a unit, at all producers, added up."""
    return torch.stack([s.flatten(1).sum(dim=1) for s in scores]).sum(dim=0)


def _weight(flow: Flow, node: Node) -> Tensor:
    weight = cast(Tensor, flow.tensor(cast(Node, node.args[1]))).double()
    if operator_name(node).startswith("conv_transpose"):
        return weight.transpose(0, 1).flatten(2).abs().sum(dim=2)
    return weight.flatten(2).abs().sum(dim=2) if weight.dim() > 2 else weight.abs()


def _lowest(score_C: Tensor, keep_fraction: float) -> Tensor:
    keep = max(1, int(keep_fraction * len(score_C) + 1e-9))
    order = torch.sort(score_C, descending=True, stable=True).indices
    gone_C = torch.ones(len(score_C), dtype=torch.bool, device=score_C.device)
    gone_C[order[:keep]] = False
    return gone_C


def _swept(
    passing: _Passing,
    taps: Mapping[str, tuple[Tap, ...]],
    scored: Mapping[Node, Tensor],
    masks: Mapping[str, Callable[[Tensor], Tensor]],
) -> dict[str, list[Tensor]]:
    """One sweep from the output to the input. Hooks run once all readers of a tensor have contributed."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in taps}
    by_node: dict[str, list[tuple[str, Tap]]] = {}
    for name, group_taps in taps.items():
        for tap in group_taps:
            by_node.setdefault(tap.node, []).append((name, tap))

    def hook(name: str, tap: Tap) -> Callable[[Tensor], Tensor | None]:
        def arrived(gradient: Tensor) -> Tensor | None:
            values = tap.values(gradient.sum(dim=0, keepdim=True))[0]
            found[name][tap.node] = values.detach().cpu()
            if name not in masks:
                return None
            gone_C = masks[name](values.flatten(1).sum(dim=1))
            gradient = gradient.clone()
            index = torch.tensor(tap.indices, device=gradient.device)[gone_C].flatten()
            return gradient.index_fill_(tap.axis, index, 0.0)

        return arrived

    def watch(node: Node, result: Tensor) -> None:
        for name, tap in by_node.get(node.name, ()):
            result.register_hook(hook(name, tap))  # type: ignore[no-untyped-call]

    responses = passing.run(watch)
    total = torch.stack([_placed(responses[layer.args[0]], score, layer) for layer, score in scored.items()]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return {
        name: [found[name].get(t.node, torch.zeros(t.indices.shape, dtype=torch.float64)) for t in group_taps]
        for name, group_taps in taps.items()
    }


def _placed(response: Tensor, score_D: Tensor, layer: Node) -> Tensor:
    """The scores, on the first sample, evenly over positions."""
    first = response[0] if operator_name(layer) == "linear" else response[0].movedim(0, -1)
    return (first * score_D.to(first)).sum() / math.prod(first.shape[:-1])


@dataclass
class _Passing:
    """Runs the network of absolute values."""

    flow: Flow
    inputs: Any
    pool: str
    _real: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._varies = _depends_on_input(self.flow)
        wanted = {a.name for n in self.flow.nodes if _measured(n, self._varies) for a in n.all_input_nodes}

        def keep(node: Node, result: Any) -> Any:
            if node.name in wanted and isinstance(result, Tensor):
                self._real[node.name] = result.detach().clone()
            return result

        placeholders = [n for n in self.flow.nodes if n.op == "placeholder"]
        for node, given in zip(placeholders, self.flow.arguments(self.inputs), strict=True):
            keep(node, given)
        with torch.no_grad():
            self.flow.run(self.inputs, keep)

    def run(self, watch: Callable[[Node, Tensor], None]) -> dict[Any, Any]:
        """Return every activation by node; `watch` sees each of them before anybody reads it."""
        values: dict[Node, Any] = {}
        placeholders = [n for n in self.flow.nodes if n.op == "placeholder"]
        for node, given in zip(placeholders, self.flow.arguments(self.inputs), strict=True):
            values[node] = given
            if node in self._varies and isinstance(given, Tensor) and given.is_floating_point():
                values[node] = torch.zeros_like(given).requires_grad_()
        for node in self.flow.nodes:
            if node.op == "call_function":
                result = self._call(node, values)
                if node in self._varies and isinstance(result, Tensor) and result.requires_grad:
                    result = result.view_as(result)  # a tensor of its own, whose gradient is this node's alone
                    watch(node, result)
                values[node] = result
        return values

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        args: Any = torch.fx.node.map_arg(node.args, lambda n: values[n])
        kwargs: Any = torch.fx.node.map_arg(node.kwargs, lambda n: values[n])
        target = cast("Callable[..., Any]", node.target)
        varying = [a for a in node.all_input_nodes if a in self._varies]
        if not varying or not any(_has_gradient(values[a]) for a in varying):
            return target(*args, **kwargs)
        name = getattr(target, "__name__", "") if target is operator.getitem else operator_name(node)
        if is_layer(node):
            without_bias = (args[0], args[1].abs(), None, *args[3:])
            return target(*without_bias, **{k: v for k, v in kwargs.items() if k != "bias"})
        if name == "batch_norm":
            return _batch_norm(*args)
        if name in ("layer_norm", "group_norm", "instance_norm"):
            return args[0] * self._scale(node, name, args)
        if name in _LIPSCHITZ:
            return args[0] * _LIPSCHITZ[name]
        if name in ("view", "_unsafe_view"):
            return args[0].reshape(args[1])
        if name in _AS_IT_IS:
            return target(*args, **kwargs)
        return self._joined(node, name, args, kwargs, values)

    def _joined(self, node: Node, name: str, args: Any, kwargs: Any, values: Mapping[Node, Any]) -> Any:
        if name in ("add", "sub", "rsub"):
            parts = [values[a] for a in node.args[:2] if isinstance(a, Node) and a in self._varies]
            return sum(parts[1:], parts[0]).expand(_result(node).shape)
        if name in ("cat", "concat", "concatenate", "stack"):
            parts = [values[a] if a in self._varies else torch.zeros_like(values[a]) for a in cast(Any, node.args[0])]
            return cast(Any, node.target)(parts, *args[1:], **kwargs)
        if name in ("pad", "constant_pad_nd"):
            return F.pad(args[0], args[1])
        if name in ("mul", "div", "matmul", "bmm"):
            return self._product(node, name, values)
        if name.startswith(("max_pool", "adaptive_max_pool")):
            return _max_pool(name, self.pool, *args)
        if name == "scaled_dot_product_attention":
            queries, _, value = args[:3]
            return value.mean(dim=-2, keepdim=True).expand(*queries.shape[:-1], value.shape[-1])
        if name in ("softmax", "_softmax"):
            return torch.zeros_like(args[0])
        raise NotApplicable(f"importance cannot be propagated through the operator {node.target}")

    def _product(self, node: Node, name: str, values: Mapping[Node, Any]) -> Any:
        left, right = node.args[:2]
        operate: Callable[[Any, Any], Any] = torch.matmul if name in ("matmul", "bmm") else torch.mul
        parts = []
        if left in self._varies:
            by = self._size(right, values)
            parts.append(operate(values[cast(Node, left)], 1 / by if name == "div" else by))
        if right in self._varies and name != "div":
            parts.append(operate(self._size(left, values), values[cast(Node, right)]))
        return sum(parts[1:], parts[0])

    def _size(self, node: Any, values: Mapping[Node, Any]) -> Any:
        if not isinstance(node, Node):
            return abs(node)
        if node not in self._varies:
            return values[node].abs()
        return self._real[node.name].abs().mean(dim=0, keepdim=True)

    def _scale(self, node: Node, name: str, args: Any) -> Tensor:
        real = self._real[cast(Node, node.args[0]).name]
        if name == "layer_norm":
            axes = tuple(range(real.dim() - len(args[1]), real.dim()))
            weight, eps = (args[2] if len(args) > 2 else None), (args[4] if len(args) > 4 else 1e-5)
            deviation = (real.var(dim=axes, correction=0, keepdim=True) + eps).rsqrt().mean(dim=0, keepdim=True)
            return deviation if weight is None else deviation * weight.abs()
        groups = args[1] if name == "group_norm" else real.shape[1]
        weight = args[2] if name == "group_norm" and len(args) > 2 else args[1] if name == "instance_norm" else None
        parted = real.reshape(len(real), groups, -1)
        deviation = (parted.var(dim=2, correction=0) + 1e-5).rsqrt().mean(dim=0)
        scale_C = deviation.repeat_interleave(real.shape[1] // groups)
        scale_C = scale_C if weight is None else scale_C * weight.abs()
        return scale_C.reshape(-1, *[1] * (real.dim() - 2))


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Any, mean: Any, var: Tensor, *rest: Any) -> Tensor:
    scale_C = (var + rest[2]).rsqrt()
    scale_C = scale_C if weight is None else scale_C * weight.abs()
    scaled: Tensor = x * scale_C.reshape(-1, *[1] * (x.dim() - 2))
    return scaled


def _max_pool(name: str, pool: str, x: Tensor, kernel: Any, *rest: Any) -> Tensor:
    dims = int(name.removesuffix("_with_indices")[-2])
    if name.startswith("adaptive"):
        adaptive = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 1]
        return adaptive(x, kernel)
    defaults: tuple[Any, ...] = ([], 0, 1, False)
    stride, padding, dilation, ceil = (*rest, *defaults[len(rest) :])
    if any(d != 1 for d in (dilation if isinstance(dilation, list | tuple) else [dilation])):
        raise NotApplicable("importance cannot be propagated through a dilated max pooling")
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    spread = average(x, kernel, stride or kernel, padding, ceil, True)
    size = math.prod(kernel) if isinstance(kernel, list | tuple) else kernel**dims
    return spread * size if pool == "sum" else spread


def _result(node: Node) -> Tensor:
    return cast(Tensor, node.meta["val"])


def _has_gradient(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(_has_gradient(v) for v in value)


def _measured(node: Node, varies: set[Node]) -> bool:
    if operator_name(node) in ("layer_norm", "group_norm", "instance_norm"):
        return True
    both = [a for a in node.all_input_nodes if a in varies]
    return operator_name(node) in ("mul", "div", "matmul", "bmm") and len(both) > 1


def _depends_on_input(flow: Flow) -> set[Node]:
    lifted = flow.program.graph_signature.inputs_to_lifted_tensor_constants
    found: set[Node] = set()
    for node in flow.nodes:
        own = node.op == "placeholder" and flow.tensor(node) is None and node.name not in lifted
        if own or any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found
