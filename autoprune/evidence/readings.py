"""What every layer reads, told by the batch norms behind it: whose outputs are added up, which activation follows.

One forward pass of one sample follows the tensors by operator; of the sample only the shape matters. A layer that reads
relu(bn2(...) + relu(bn1(...))) reads the sum of bn1 and bn2, rectified: what was added into a stream before counts as
a part of the sum, whatever activation it has passed on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Group, Place, Role, Structure
from autoprune.tasks import forward

IDENTITY, OTHER = "identity", "other"
ACTIVATIONS = (
    IDENTITY, "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "elu", "selu", "celu", "mish", "softplus",
    "tanh", "sigmoid", "hardsigmoid", OTHER,
)  # fmt: skip
_WITHOUT_A_FORMULA = ("prelu", "rrelu", "threshold", "hardtanh", "logsigmoid", "softsign", "tanhshrink", "softshrink")
_NEW_VALUES = (
    "linear", "matmul", "bmm", "addmm", "layer_norm", "group_norm", "instance_norm", "scaled_dot_product_attention",
    "multi_head_attention_forward",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What layers read of a group: activation(sum of the outputs of `norms`). norms: names of their weights."""

    norms: tuple[str, ...]
    eps: tuple[float, ...]
    activation: str
    slope: float
    readers: tuple[Place, ...]


@dataclass(frozen=True)
class _Part:
    norms: frozenset[str]
    activation: str = IDENTITY
    slope: float = 0.0


_Parts = frozenset[_Part]


def readings(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather for every layer's weight (parts, 2 + norms): activation, slope, and which norms are in the sum.

    `eps` (norms,) holds what every norm adds to the variance; norms in the order of `norm_names`.
    """
    probe = copy.deepcopy(model).to(source.device).eval()
    follower = _Follower({id(p): name for name, p in probe.named_parameters()})
    inputs = source.data.train.one_sample(source.device)
    with torch.no_grad(), follower:
        forward(probe, inputs)
    names = norm_names(structure)
    found = {
        reader: torch.tensor([_row(p, names) for p in sorted(parts, key=str)], dtype=torch.float64)
        for reader, parts in follower.readings.items()
        if parts
    }
    return found | {"eps": torch.tensor([follower.eps.get(n, 0.0) for n in names], dtype=torch.float64)}


def norm_names(structure: Structure) -> list[str]:
    """Return the names of the weights of all norms that units pass."""
    return sorted({plan.tensor for plan in structure.axes if plan.role == Role.NORM_WEIGHT})


def readings_of(gathered: Gathered, structure: Structure, group: Group) -> tuple[Reading, ...]:
    """Return the different things that layers read of a group; empty without batch norm."""
    names, own = norm_names(structure), {p.tensor for p in group.places_with(Role.NORM_WEIGHT)}
    eps = dict(zip(names, gathered["eps"].tolist(), strict=True))
    readers: dict[_Part, list[Place]] = {}
    for place in group.places_with(Role.INPUT):
        for row in gathered[place.tensor].tolist() if place.tensor in gathered else []:
            norms = frozenset(n for n, inside in zip(names, row[2:], strict=True) if inside and n in own)
            if norms:
                readers.setdefault(_Part(norms, ACTIVATIONS[int(row[0])], row[1]), []).append(place)
    return tuple(
        Reading(tuple(sorted(p.norms)), tuple(eps[n] for n in sorted(p.norms)), p.activation, p.slope, tuple(places))
        for p, places in readers.items()
    )


def _row(part: _Part, names: list[str]) -> list[float]:
    return [ACTIVATIONS.index(part.activation), part.slope, *(float(n in part.norms) for n in names)]


class _Follower(TorchFunctionMode):
    """Carries along with every tensor which norms' outputs are in it."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.readings: dict[str, _Parts] = {}
        self.eps: dict[str, float] = {}
        self._names = names
        # The tensors are held, since an id is free again when its tensor is gone.
        self._parts: dict[int, tuple[Tensor, _Parts]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        parts = self._after(name, args, given)
        out = func(*args, **given)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._parts[id(tensor)] = (tensor, parts)
        return out

    def _after(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Parts:
        inputs = [self._of(a) for a in (*args, *kwargs.values())]
        if name == "batch_norm":
            return self._norm(args, kwargs)
        if name.startswith("conv") or name in _NEW_VALUES:
            weight = self._names.get(id(_argument(args, kwargs, 1, "weight")))
            if weight is not None:
                self.readings[weight] = self.readings.get(weight, frozenset()) | inputs[0]
            return frozenset()
        if name in ACTIVATIONS or name in _WITHOUT_A_FORMULA:
            activation, slope = _activation(name, args, kwargs)
            return frozenset(replace(p, activation=activation, slope=slope) for p in inputs[0])
        if name in ("add", "iadd", "radd", "sub", "isub", "rsub"):
            return _summed([p for parts in inputs for p in parts], sum(bool(parts) for parts in inputs))
        if name in ("mul", "imul", "rmul", "div"):
            return next((parts for parts in inputs if parts), frozenset())
        return frozenset().union(*inputs)

    def _of(self, value: Any) -> _Parts:
        if isinstance(value, tuple | list):
            return frozenset().union(*(self._of(v) for v in value))
        held = self._parts.get(id(value)) if isinstance(value, Tensor) else None
        return held[1] if held is not None else frozenset()

    def _norm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Parts:
        name = self._names.get(id(_argument(args, kwargs, 3, "weight")))
        if name is None:
            return frozenset()
        self.eps[name] = float(_argument(args, kwargs, 7, "eps", 1e-5))
        return frozenset({_Part(frozenset({name}))})


def _summed(parts: list[_Part], terms: int) -> _Parts:
    """Add: one sum of all norms. A single term, as in x + 3 or x + positions, stays what it is."""
    if terms < 2:
        return frozenset(parts)
    return frozenset({_Part(frozenset().union(*(p.norms for p in parts)))})


def _activation(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, float]:
    if name == "leaky_relu":
        return name, float(_argument(args, kwargs, 1, "negative_slope", 0.01))
    if name == "hardtanh":
        ends = _argument(args, kwargs, 1, "min_val", -1.0), _argument(args, kwargs, 2, "max_val", 1.0)
        return ("relu6" if ends == (0.0, 6.0) else OTHER), 0.0
    return (name if name in ACTIVATIONS else OTHER), 0.0


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)
