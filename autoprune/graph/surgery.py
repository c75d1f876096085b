"""The only code that edits modules: select, cut and mask by tensor name."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import WrongArtefact
from autoprune.graph import keeping, resizing, skipping
from autoprune.graph.keeping import Keep
from autoprune.graph.parts import IntArray, Role
from autoprune.graph.skipped import take_out

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure

ZEROED = frozenset(
    {Role.OUTPUT, Role.BIAS, Role.NORM_WEIGHT, Role.NORM_BIAS, Role.NORM_MEAN, Role.DEPTHWISE, Role.OTHER}
)
"""What masking sets to zero. The mean belongs to it because a normalisation may have no scale and shift."""


@dataclass(frozen=True)
class Selection:
    """A cut as plain data, applied by `apply_selection`.

    kept: {tensor: {axis: kept indices}}; attributes: {module: {attribute: new value}}; shapes: {tensor:
    shape before}; scales: {tensor: [(rows before the cut, factor)]} keep the scale of attention whose heads became
    narrower; views: {module: [(rank, [(axis, size in the code, size to ask for)])]} for modules whose code fixes them;
    parts: {module: [(rank, axis, lengths in the code, lengths to take)]} likewise, before, inside and behind a range.
    skipped: {module path of a block that is taken out: the argument that takes the place of its result}.
    """

    kept: Mapping[str, Mapping[int, list[int]]]
    attributes: Mapping[str, Mapping[str, int]]
    shapes: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, list[tuple[list[int], float]]] = field(default_factory=dict)
    views: Mapping[str, list[resizing.Rule]] = field(default_factory=dict)
    skipped: Mapping[str, int | str] = field(default_factory=dict)
    parts: Mapping[str, list[resizing.PartRule]] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; axes become strings there."""
        return {
            "kept": {name: {str(axis): kept for axis, kept in axes.items()} for name, axes in self.kept.items()},
            "attributes": {module: dict(values) for module, values in self.attributes.items()},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "scales": {name: [[rows, factor] for rows, factor in items] for name, items in self.scales.items()},
            "views": {m: [[rank, [list(a) for a in axes]] for rank, axes in rules] for m, rules in self.views.items()},
            "skipped": dict(self.skipped),
            "parts": {m: [[r, axis, [*old], [*new]] for r, axis, old, new in x] for m, x in self.parts.items()},
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Selection:
        """Read what `to_data` wrote. Raises WrongArtefact."""
        try:
            return Selection(
                {
                    str(name): {int(axis): [int(i) for i in kept] for axis, kept in axes.items()}
                    for name, axes in data["kept"].items()
                },
                {str(m): {str(a): int(v) for a, v in values.items()} for m, values in data["attributes"].items()},
                {str(name): tuple(int(n) for n in shape) for name, shape in data["shapes"].items()},
                {
                    str(name): [([int(row) for row in rows], float(factor)) for rows, factor in items]
                    for name, items in data.get("scales", {}).items()
                },
                {
                    str(module): [
                        (int(rank), tuple((int(i), int(o), int(n)) for i, o, n in axes)) for rank, axes in rules
                    ]
                    for module, rules in data.get("views", {}).items()
                },
                {str(path): _argument(value) for path, value in data.get("skipped", {}).items()},
                {
                    str(module): [
                        (int(rank), int(axis), tuple(int(n) for n in old), tuple(int(n) for n in new))
                        for rank, axis, old, new in rules
                    ]
                    for module, rules in data.get("parts", {}).items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WrongArtefact(
                f"a selection needs kept, attributes and shapes as to_data writes them: {error!r}"
            ) from error


def _argument(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"an argument is a position or a name, got {value!r}")
    return value


Indices = Mapping[str, Mapping[int, IntArray]]
Sizes = Mapping[str, Mapping[str, int]]


def select(structure: Structure, keep: Keep, skip: Sequence[str] = ()) -> Selection:
    """Work out which indices of which tensors stay, and the sizes that follow."""
    found = _select(skipping.without_blocks(structure, skip), keep)
    kept = {name: {axis: indices.tolist() for axis, indices in axes.items()} for name, axes in found.kept.items()}
    return Selection(
        kept,
        found.attributes,
        {name: structure.tensors[name].shape for name in found.kept},
        {name: [(rows.tolist(), factor) for rows, factor in items] for name, items in found.scales.items()},
        found.views,
        skipping.arguments(structure, skip),
        found.parts,
    )


@dataclass(frozen=True)
class _Cut:
    kept: Indices
    attributes: Sizes
    scales: Mapping[str, list[tuple[IntArray, float]]]
    views: Mapping[str, list[resizing.Rule]]
    parts: Mapping[str, list[resizing.PartRule]]


def _select(structure: Structure, keep: Keep) -> _Cut:
    kept = keeping.kept_units(structure, keep)
    found: dict[str, dict[int, IntArray]] = {}
    lengths: dict[tuple[str, int], int] = {}
    for (tensor, axis), plans in structure.plans_by_axis.items():
        stays = np.flatnonzero(keeping.stays(plans, kept))
        lengths[tensor, axis] = len(stays)
        if tensor in structure.tensors and len(stays) < len(plans[0].units):
            found.setdefault(tensor, {})[axis] = stays
    attributes: dict[str, dict[str, int]] = {}
    for size in structure.attributes:
        # Code that is corrected view by view goes on reading the sizes that it was written for.
        if size.module not in structure.resized and (size.tensor, size.axis) in lengths:
            value = lengths[size.tensor, size.axis] * size.multiply // size.divide
            attributes.setdefault(size.module, {})[size.attribute] = value
    scales: dict[str, list[tuple[IntArray, float]]] = {}
    for item in structure.rescales:
        length = lengths.get((item.counter, 0), item.length)
        if length != item.length and length:
            scales.setdefault(item.tensor, []).append((item.rows, float(np.sqrt(length / item.length))))
    return _Cut(found, attributes, scales, _views(structure, lengths), _parts(structure, lengths))


def _views(structure: Structure, lengths: Mapping[tuple[str, int], int]) -> dict[str, list[resizing.Rule]]:
    """What the views of the modules to resize have to ask for; fixed ones too, lest others take their place."""
    found: dict[str, list[resizing.Rule]] = {}
    for view in structure.views:
        if view.module in structure.resized:
            axes = tuple((axis, full, lengths.get((name, 0), full)) for axis, full, name in view.axes)
            found.setdefault(view.module, []).append((view.rank, axes))
    return {
        module: list(dict.fromkeys(rules))
        for module, rules in found.items()
        if any(old != new for _, axes in rules for _, old, new in axes)
    }


def _parts(structure: Structure, lengths: Mapping[tuple[str, int], int]) -> dict[str, list[resizing.PartRule]]:
    """What the splits and slices of the modules to resize have to take, like `_views`."""
    found: dict[str, list[resizing.PartRule]] = {}
    for part in structure.parts:
        if part.module in structure.resized:
            old = tuple(full for full, _ in part.lengths)
            new = tuple(lengths.get((name, 0), full) for full, name in part.lengths)
            found.setdefault(part.module, []).append((part.rank, part.axis, old, new))
    return {m: list(dict.fromkeys(x)) for m, x in found.items() if any(old != new for *_, old, new in x)}


def cut(
    structure: Structure, model: nn.Module, keep: Keep, skip: Sequence[str] = (), *, dtype: torch.dtype | None = None
) -> nn.Module:
    """Return a cut copy. Tensors that are cut and blocks that are skipped are never copied in full.

    dtype: precision of the copy, if not the model's own.
    """
    found = _select(skipping.without_blocks(structure, skip), keep)
    memo: dict[int, Any] = {}
    for name in dict.fromkeys((*found.kept, *found.scales)):
        tensor = _checked(model, name, structure.tensors[name].shape)
        memo[id(tensor)] = _cut_tensor(tensor, found.kept.get(name, {}), found.scales.get(name, ()), dtype)
    if dtype is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            if id(tensor) not in memo and (tensor.is_floating_point() or tensor.is_complex()):
                memo[id(tensor)] = _cut_tensor(tensor, {}, (), dtype)
    small = skipping.copied_without(structure, model, skip, memo)
    _set_attributes(small, found.attributes)
    _resize(small, found.views, found.parts)
    return small


def apply_selection(model: nn.Module, selection: Selection | Mapping[str, Any]) -> nn.Module:
    """Cut an uncut model in place and return it. Raises WrongArtefact if the shapes do not fit."""
    if not isinstance(selection, Selection):
        selection = Selection.from_data(selection)
    take_out(model, selection.skipped)
    smaller = {}
    for name, axes in selection.kept.items():
        tensor = _checked(model, name, selection.shapes.get(name))
        scales = [(np.asarray(rows, dtype=np.int64), factor) for rows, factor in selection.scales.get(name, ())]
        smaller[id(tensor)] = _cut_tensor(tensor, _arrays(name, tensor, axes), scales)
    for module in model.modules():
        for held in (cast("dict[str, Any]", module._parameters), cast("dict[str, Any]", module._buffers)):
            for key, found in held.items():
                held[key] = smaller.get(id(found), found)
    _set_attributes(model, selection.attributes)
    _resize(model, selection.views, selection.parts)
    return model


def _resize(
    model: nn.Module,
    views: Mapping[str, list[resizing.Rule]],
    parts: Mapping[str, list[resizing.PartRule]],
) -> None:
    for path in dict.fromkeys((*views, *parts)):
        resizing.resize(model.get_submodule(path), views.get(path, ()), parts.get(path, ()))
    if views or parts:
        resizing.resize_around(model)


def mask(structure: Structure, model: nn.Module, keep: Keep) -> nn.Module:
    """Return a full-size copy whose removed units are zero."""
    masked = copy.deepcopy(model)
    zero(structure, masked, keep)
    return masked


def zero(structure: Structure, model: nn.Module, keep: Keep) -> None:
    """Set the removed units of the model itself to zero."""
    with torch.no_grad():
        for tensor, axis, gone in _zeroed(structure, model, keep):
            tensor.index_fill_(axis, gone, 0)


def _zeroed(structure: Structure, model: nn.Module, keep: Keep) -> Iterator[tuple[Tensor, int, Tensor]]:
    """(tensor, axis, indices) of all that masking sets to zero."""
    kept = keeping.kept_units(structure, keep)
    for plan in structure.axes:
        gone = np.flatnonzero((plan.units >= 0) & ~kept[plan.units])
        if plan.role in ZEROED and len(gone):
            tensor = tensor_by_name(model, plan.tensor)
            yield tensor, plan.axis, torch.from_numpy(gone).to(tensor.device)


@contextlib.contextmanager
def masked(structure: Structure, model: nn.Module, keep: Keep) -> Iterator[nn.Module]:
    """The model itself with its removed units at zero, and as it was afterwards. Saves memory against `mask`."""
    saved: list[tuple[Tensor, int, Tensor, Tensor]] = []
    with torch.no_grad():
        for tensor, axis, gone in _zeroed(structure, model, keep):
            saved.append((tensor, axis, gone, tensor.index_select(axis, gone)))
            tensor.index_fill_(axis, gone, 0)
    try:
        yield model
    finally:
        with torch.no_grad():
            for tensor, axis, index, values in reversed(saved):
                tensor.index_copy_(axis, index, values)


def tensor_by_name(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of that name. Raises WrongArtefact."""
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise WrongArtefact(f"the model has no module {path!r}; was the structure traced on another model?") from error
    tensor = {**module._buffers, **module._parameters}.get(leaf)
    if tensor is None:
        raise WrongArtefact(f"the model has no tensor {name!r}; was the structure traced on another model?")
    return tensor


def _checked(model: nn.Module, name: str, shape: tuple[int, ...] | None) -> Tensor:
    tensor = tensor_by_name(model, name)
    if shape is None or tuple(tensor.shape) != tuple(shape):
        raise WrongArtefact(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, the plan is for {shape}; "
            f"was the structure traced on another model, or is this one cut already?"
        )
    return tensor


def _arrays(name: str, tensor: Tensor, axes: Mapping[int, list[int]]) -> dict[int, IntArray]:
    found = {axis: np.asarray(indices, dtype=np.int64) for axis, indices in axes.items()}
    for axis, indices in found.items():
        fits = 0 <= axis < tensor.dim() and len(indices)
        if not fits or not 0 <= indices.min() <= indices.max() < tensor.shape[axis]:
            raise WrongArtefact(
                f"the selection keeps indices of {name!r} on axis {axis} that are outside its shape "
                f"{tuple(tensor.shape)}; the file was changed or belongs to another model"
            )
    return found


def widened(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type of this tensor in a model of that precision."""
    return dtype.to_complex() if tensor.is_complex() else dtype if tensor.is_floating_point() else tensor.dtype


def _cut_tensor(
    tensor: Tensor,
    axes: Mapping[int, IntArray],
    scales: Sequence[tuple[IntArray, float]] = (),
    dtype: torch.dtype | None = None,
) -> Tensor:
    small = tensor.detach()
    # What removes most goes first, so that the second selection copies little.
    for axis in sorted(axes, key=lambda axis: len(axes[axis]) / tensor.shape[axis]):
        small = small.index_select(axis, torch.from_numpy(axes[axis]).to(tensor.device))
    if dtype is not None:
        small = small.to(widened(tensor, dtype), copy=not axes)
    if scales:
        factors = np.ones(tensor.shape[0])
        for rows, factor in scales:
            factors[rows] = factor
        left = torch.from_numpy(factors[axes[0]] if 0 in axes else factors).to(small)
        small = small * left.view(-1, *(1,) * (tensor.dim() - 1))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        small = small.contiguous(memory_format=torch.channels_last)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(small, requires_grad=tensor.requires_grad)
    return small


def _set_attributes(model: nn.Module, attributes: Sizes) -> None:
    for path, values in attributes.items():
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise WrongArtefact(f"the model has no module {path!r}, whose sizes the selection sets") from error
        for attribute, value in values.items():
            setattr(module, attribute, value)
