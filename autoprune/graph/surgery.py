"""The only code that edits modules: select, cut and mask by tensor name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import WrongArtefact
from autoprune.graph import keeping
from autoprune.graph.keeping import Keep
from autoprune.graph.parts import Role

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure

ZEROED = frozenset(
    {Role.OUTPUT, Role.BIAS, Role.NORM_WEIGHT, Role.NORM_BIAS, Role.NORM_MEAN, Role.DEPTHWISE, Role.OTHER}
)
"""What masking sets to zero. The mean belongs to it because a normalisation may have no scale and shift."""


@dataclass(frozen=True)
class Selection:
    """A cut as plain data, applied by `apply_selection`.

    kept: {tensor: {axis: kept indices}}; attributes: {module: {attribute: new value}}; shapes: {tensor: shape before}.
    """

    kept: Mapping[str, Mapping[int, list[int]]]
    attributes: Mapping[str, Mapping[str, int]]
    shapes: Mapping[str, tuple[int, ...]]

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; axes become strings there."""
        return {
            "kept": {
                name: {str(axis): kept for axis, kept in axes.items()} for name, axes in self.kept.items()
            },
            "attributes": {module: dict(values) for module, values in self.attributes.items()},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
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
                {
                    str(m): {str(a): int(v) for a, v in values.items()}
                    for m, values in data["attributes"].items()
                },
                {str(name): tuple(int(n) for n in shape) for name, shape in data["shapes"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WrongArtefact(
                f"a selection needs kept, attributes and shapes as to_data writes them: {error!r}"
            ) from error


def select(structure: Structure, keep: Keep) -> Selection:
    """Work out which indices of which tensors stay, and the sizes that follow."""
    kept = keeping.kept_units(structure, keep)
    found: dict[str, dict[int, list[int]]] = {}
    lengths: dict[tuple[str, int], int] = {}
    for plan in (*structure.axes, *structure.counters):
        stays = (plan.units < 0) | kept[plan.units]
        lengths[plan.tensor, plan.axis] = int(stays.sum())
        if plan.tensor in structure.tensors and not stays.all():
            found.setdefault(plan.tensor, {})[plan.axis] = np.flatnonzero(stays).tolist()
    attributes: dict[str, dict[str, int]] = {}
    for size in structure.attributes:
        if (size.tensor, size.axis) in lengths:
            value = lengths[size.tensor, size.axis] * size.multiply // size.divide
            attributes.setdefault(size.module, {})[size.attribute] = value
    return Selection(found, attributes, {name: structure.tensors[name].shape for name in found})


def cut(model: nn.Module, selection: Selection) -> nn.Module:
    """Return a cut copy. Tensors that are cut are never copied in full."""
    memo: dict[int, Any] = {}
    for name, axes in selection.kept.items():
        tensor = _tensor(model, name, selection)
        memo[id(tensor)] = _cut_tensor(tensor, axes)
    small = copy.deepcopy(model, memo)
    _set_attributes(small, selection)
    return small


def apply_selection(model: nn.Module, selection: Selection | Mapping[str, Any]) -> nn.Module:
    """Cut an uncut model in place and return it. Raises WrongArtefact if the shapes do not fit."""
    if not isinstance(selection, Selection):
        selection = Selection.from_data(selection)
    found = {name: _tensor(model, name, selection) for name in selection.kept}
    smaller = {id(found[name]): _cut_tensor(found[name], axes) for name, axes in selection.kept.items()}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if id(tensor) in smaller:
                    held[key] = smaller[id(tensor)]
    _set_attributes(model, selection)
    return model


def mask(structure: Structure, model: nn.Module, keep: Keep) -> nn.Module:
    """Return a full-size copy whose removed units are zero."""
    kept = keeping.kept_units(structure, keep)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for plan in structure.axes:
            gone = np.flatnonzero((plan.units >= 0) & ~kept[plan.units])
            if plan.role in ZEROED and len(gone):
                tensor = tensor_by_name(masked, plan.tensor)
                tensor.index_fill_(plan.axis, torch.from_numpy(gone).to(tensor.device), 0)
    return masked


def tensor_by_name(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of that name. Raises WrongArtefact."""
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise WrongArtefact(
            f"the model has no module {path!r}; was the structure traced on another model?"
        ) from error
    tensor = module._parameters.get(leaf)
    if tensor is None:
        tensor = module._buffers.get(leaf)  # type: ignore[assignment]
    if tensor is None:
        raise WrongArtefact(f"the model has no tensor {name!r}; was the structure traced on another model?")
    return tensor


def _tensor(model: nn.Module, name: str, selection: Selection) -> Tensor:
    tensor = tensor_by_name(model, name)
    expected = selection.shapes.get(name)
    if expected is None or tuple(tensor.shape) != tuple(expected):
        raise WrongArtefact(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, the selection is for {expected}; "
            f"was the structure traced on another model, or is this one cut already?"
        )
    for axis, indices in selection.kept[name].items():
        if (
            not 0 <= axis < tensor.dim()
            or not indices
            or not 0 <= min(indices) <= max(indices) < tensor.shape[axis]
        ):
            raise WrongArtefact(
                f"the selection keeps indices of {name!r} axis {axis} that are outside {expected}"
            )
    return tensor


def _cut_tensor(tensor: Tensor, axes: Mapping[int, list[int]]) -> Tensor:
    small = tensor.detach()
    for axis, indices in axes.items():
        small = small.index_select(axis, torch.tensor(indices, device=tensor.device))
    if (
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    ):
        small = small.contiguous(memory_format=torch.channels_last)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(small, requires_grad=tensor.requires_grad)
    return small


def _set_attributes(model: nn.Module, selection: Selection) -> None:
    for path, values in selection.attributes.items():
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise WrongArtefact(
                f"the model has no module {path!r}, whose sizes the selection sets"
            ) from error
        for attribute, value in values.items():
            setattr(module, attribute, value)
