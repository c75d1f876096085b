"""Modules whose code fixes the sizes of a view: after a cut their views ask for the sizes that are left.

Code such as `x.reshape(B, N, C)` with C taken from the input cannot follow when heads are removed. A module with such
code gets a subclass of its own class, whose forward pass runs the same code under a mode that corrects the sizes of
`view` and `reshape`. Verification proves the result like any other cut. The subclass copies and pickles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.graph.adapters import FORWARDS

Rule = tuple[int, tuple[tuple[int, int, int], ...]]
"""Rank of a view, and (axis, size in the code, size to ask for) of the axes that were cut."""

RULES_NAME = "_autoprune_views"
_VIEWS: frozenset[Any] = frozenset({Tensor.view, Tensor.reshape, torch.reshape})


def resize(module: nn.Module, rules: Sequence[Rule]) -> None:
    """Let the views of this module, changed in place, follow the rules."""
    base = getattr(type(module), "_autoprune_base", type(module))
    module.__class__ = _resized_class(base)
    if isinstance(module, nn.MultiheadAttention):
        # Or nn.TransformerEncoderLayer goes around this module, by a fused kernel for the full width.
        module._qkv_same_embed_dim = False
    setattr(module, RULES_NAME, [(int(rank), tuple(tuple(axis) for axis in axes)) for rank, axes in rules])


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
"""Made once for each class, so that two copies of a model have modules of the same class."""


def _resized_class(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _CLASSES:
        _CLASSES[base] = _made(base, FORWARDS.get(base))
    return _CLASSES[base]


def _made(base: type[nn.Module], own: Callable[..., Any] | None) -> type[nn.Module]:

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        rules = getattr(self, RULES_NAME)
        if own is not None:
            return own(self, rules, *args, **kwargs)
        with _Resized(rules):
            return base.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]:
        return _new, (base,), dict(self.__dict__)

    members = {"forward": forward, "__reduce_ex__": reduce, "_autoprune_base": base, "__module__": base.__module__}
    return type(base.__name__, (base,), members)


def _new(base: type[nn.Module]) -> nn.Module:
    found = _resized_class(base)
    return found.__new__(found)


class _Resized(TorchFunctionMode):
    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _VIEWS and not kwargs and len(args) > 1 and isinstance(args[0], Tensor):
            packed = isinstance(args[1], tuple | list)
            sizes = tuple(args[1]) if packed else tuple(args[1:])
            if all(isinstance(size, int | torch.SymInt) for size in sizes):
                return func(args[0], corrected(sizes, args[0].numel(), self.rules))
        return func(*args, **(kwargs or {}))


def _is(size: int, old: int) -> bool:
    """Not for a batch of unknown size, as exports have: to compare it would fix it."""
    return isinstance(size, int) and size in (old, -1)


def corrected(sizes: tuple[int, ...], count: int, rules: Sequence[Rule]) -> tuple[int, ...]:
    """The sizes of the first rule that fits them and the number of elements; else those given."""
    for rank, axes in rules:
        if rank != len(sizes) or not all(_is(sizes[axis], old) for axis, old, _ in axes):
            continue
        asked = list(sizes)
        for axis, _, new in axes:
            asked[axis] = -1 if asked[axis] == -1 else new
        known = math.prod(size for size in asked if size != -1)
        if known == count or (-1 in asked and known and count % known == 0):
            return tuple(asked)
    return sizes
