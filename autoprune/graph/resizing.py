"""Modules whose code fixes sizes of views, splits and slices: after a cut they ask for the sizes that are left.

Code such as `x.reshape(B, N, C)` with C taken from the input, or `x.split([32, 64], 1)`, cannot follow when channels
are removed; a mean over channels would divide by fewer of them. A module with such code gets a subclass of its own
class, whose forward pass runs the same code under a mode that corrects these sizes. Verification proves the result like
any other cut. The subclass copies and pickles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.graph.adapters import FORWARDS

Rule = tuple[int, tuple[tuple[int, int, int], ...]]
"""Rank of a view, and (axis, size in the code, size to ask for) of the axes that were cut."""
PartRule = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""Rank, axis, and the lengths before, inside and behind a range: in the code, and those to take."""

RULES_NAME = "_autoprune_views"
PARTS_NAME = "_autoprune_parts"
_VIEWS: frozenset[Any] = frozenset({Tensor.view, Tensor.reshape, torch.reshape})
_BY_SIZES: tuple[Any, ...] = (torch.split, Tensor.split, torch.split_with_sizes, Tensor.split_with_sizes)
_SPLITS: frozenset[Any] = frozenset(_BY_SIZES)
_MEANS: frozenset[Any] = frozenset({torch.mean, Tensor.mean})
_NARROWS: frozenset[Any] = frozenset({torch.narrow, Tensor.narrow})


def resize(module: nn.Module, rules: Sequence[Rule], parts: Sequence[PartRule] = ()) -> None:
    """Let the views, splits and slices of this module, changed in place, follow the rules."""
    base = getattr(type(module), "_autoprune_base", type(module))
    module.__class__ = _resized_class(base)
    if isinstance(module, nn.MultiheadAttention):
        # Or nn.TransformerEncoderLayer goes around this module, by a fused kernel for the full width.
        module._qkv_same_embed_dim = False
    setattr(module, RULES_NAME, [(int(rank), tuple(tuple(axis) for axis in axes)) for rank, axes in rules])
    setattr(module, PARTS_NAME, [(int(rank), int(axis), tuple(old), tuple(new)) for rank, axis, old, new in parts])


def resize_around(model: nn.Module) -> None:
    """Let encoders whose attention was resized do without the nested tensors that it cannot take."""
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder) or hasattr(module, RULES_NAME):
            continue
        if any(isinstance(inner, nn.MultiheadAttention) and hasattr(inner, RULES_NAME) for inner in module.modules()):
            kind = type(module)
            resize(module, ())
            # Code of a subclass asks for it itself.
            module.use_nested_tensor = module.use_nested_tensor and _forward_for(kind) is not None


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
"""Made once for each class, so that two copies of a model have modules of the same class."""


def _resized_class(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _CLASSES:
        _CLASSES[base] = _made(base, _forward_for(base))
    return _CLASSES[base]


def _forward_for(base: type[nn.Module]) -> Callable[..., Any] | None:
    """The forward pass that takes the place of this class's, if it has that of a class of torch."""
    return next((own for kind, own in FORWARDS.items() if base.forward is kind.forward), None)


def _made(base: type[nn.Module], own: Callable[..., Any] | None) -> type[nn.Module]:

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        rules = getattr(self, RULES_NAME)
        if own is not None:
            return own(self, rules, *args, **kwargs)
        with _Resized(rules, getattr(self, PARTS_NAME)):
            return base.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]:
        return _new, (base,), dict(self.__dict__)

    members = {"forward": forward, "__reduce_ex__": reduce, "_autoprune_base": base, "__module__": base.__module__}
    return type(base.__name__, (base,), members)


def _new(base: type[nn.Module]) -> nn.Module:
    found = _resized_class(base)
    return found.__new__(found)


class _Resized(TorchFunctionMode):
    def __init__(self, rules: Sequence[Rule], parts: Sequence[PartRule]) -> None:
        super().__init__()
        self.rules = rules
        self.parts = parts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _VIEWS and not kwargs and len(args) > 1 and isinstance(args[0], Tensor):
            packed = isinstance(args[1], tuple | list)
            sizes = tuple(args[1]) if packed else tuple(args[1:])
            if all(isinstance(size, int | torch.SymInt) for size in sizes):
                return func(args[0], corrected(sizes, args[0].numel(), self.rules))
        elif self.parts and func in _SPLITS:
            return _split(*args, **kwargs, rules=self.parts)
        elif self.parts and func in _NARROWS:
            return _narrow(*args, **kwargs, rules=self.parts)
        elif self.parts and func in _MEANS and args:
            return _mean(func, *args, **kwargs, rules=self.parts)
        elif self.parts and func is Tensor.__getitem__:
            return args[0][sliced(args[1], tuple(args[0].shape), self.parts)]
        return func(*args, **kwargs)


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


def _split(
    tensor: Tensor, split_size: Any, dim: int = 0, *, rules: Sequence[PartRule], **named: Any
) -> tuple[Tensor, ...]:
    sizes = [split_size] if isinstance(split_size, int) else list(split_size)
    axis = dim % tensor.dim()
    found = shares(sizes, isinstance(split_size, int), (tensor.dim(), axis, tensor.shape[axis]), rules)
    return torch.split(tensor, split_size if found is None else found, dim)


def shares(
    sizes: Sequence[int], equal: bool, place: tuple[int, int, int], rules: Sequence[PartRule]
) -> list[int] | None:
    """Sizes of a split whose parts all have a rule; None if not. place: rank, axis and the length there is."""
    rank, axis, length = place
    fitting = {old: new for r, a, old, new in reversed(rules) if (r, a) == (rank, axis) and sum(new) == length}
    for full in dict.fromkeys(sum(old) for old in fitting):
        asked = [min(sizes[0], full - start) for start in range(0, full, sizes[0])] if equal else sizes
        if sum(asked) != full:
            continue
        starts = itertools.accumulate(asked, initial=0)
        found = [fitting.get((start, size, full - start - size)) for start, size in zip(starts, asked, strict=False)]
        taken = [new[1] for new in found if new is not None]
        if len(taken) == len(asked) and sum(taken) == length:
            return taken
    return None


def _narrow(tensor: Tensor, dim: int, start: Any, length: int, *, rules: Sequence[PartRule]) -> Tensor:
    axis = dim % tensor.dim()
    if not isinstance(start, int):
        return torch.narrow(tensor, dim, start, length)
    if start < 0:
        whole = next((sum(old) for r, a, old, new in rules if (r, a) == (tensor.dim(), axis)), tensor.shape[axis])
        start += whole
    first, last = _range(slice(start, start + length), (tensor.dim(), axis, tensor.shape[axis]), rules)
    return torch.narrow(tensor, dim, first, last - first)


def _mean(func: Any, tensor: Tensor, dim: Any = None, *more: Any, rules: Sequence[PartRule], **named: Any) -> Tensor:
    """With the divisor that the full model has."""
    dim = named.pop("axis", None) if dim is None else dim
    given = (dim,) if isinstance(dim, int) else tuple(range(tensor.dim())) if dim is None else tuple(dim)
    dims = [axis % tensor.dim() for axis in given]
    factor = math.prod(divided(axis, tuple(tensor.shape), rules) for axis in dims)
    result: Tensor = func(tensor, dims, *more, **named)
    return result if factor == 1 else result * factor


def divided(axis: int, shape: tuple[int, ...], rules: Sequence[PartRule]) -> float:
    """Length of an axis that is left, over that in the code; one where no mean over it is known."""
    for rank, at, old, new in rules:
        if (rank, at, sum(new)) == (len(shape), axis, shape[axis]) and old[0] == old[2] == 0:
            return new[1] / old[1]
    return 1.0


def sliced(index: Any, shape: tuple[int, ...], rules: Sequence[PartRule]) -> Any:
    """An index into a tensor of that shape, with those of its slices corrected that a rule fits."""
    items = index if isinstance(index, tuple) else (index,)
    if any(not (item is None or item is Ellipsis or isinstance(item, int | slice)) for item in items):
        return index
    taken = sum(item is not None and item is not Ellipsis for item in items)
    result, axis = [], 0
    for item in items:
        if isinstance(item, slice) and item.step in (None, 1) and (item.start, item.stop) != (None, None):
            item = slice(*_range(item, (len(shape), axis, shape[axis]), rules))
        result.append(item)
        axis += len(shape) - taken if item is Ellipsis else int(item is not None)
    return tuple(result)


def _range(given: slice, place: tuple[int, int, int], rules: Sequence[PartRule]) -> tuple[Any, Any]:
    rank, axis, length = place
    for r, a, old, new in rules:
        if (r, a) != (rank, axis) or sum(new) != length or not _whole_numbers(given):
            continue
        start, stop, _ = given.indices(sum(old))
        if (start, stop - start) == (old[0], old[1]):
            return new[0], new[0] + new[1]
    return given.start, given.stop


def _whole_numbers(given: slice) -> bool:
    return all(bound is None or isinstance(bound, int) for bound in (given.start, given.stop))
