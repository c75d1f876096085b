"""What is kept: reading and checking the `keep` argument, and the structure of a cut model."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import BadInput, unknown_name
from autoprune.graph.parts import AxisPlan, IntArray, Layer, Rescale, Tensor

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure

Keep = Mapping[str, Sequence[int] | Any] | float | None
"""{group name: kept unit indices}, one keep_fraction for every group, or None for everything."""


def indices_by_group(units: IntArray, offsets: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Yield (group index, (C, m) positions) for every group on one axis; row c holds the positions of unit
    c."""
    positions = np.flatnonzero(units >= 0)
    order = positions[np.argsort(units[positions], kind="stable")]
    sorted_units = units[order]
    for index in np.unique(np.searchsorted(offsets, sorted_units, side="right") - 1):
        start, end = np.searchsorted(sorted_units, [offsets[index], offsets[index + 1]])
        found = order[start:end].reshape(int(offsets[index + 1] - offsets[index]), -1)
        found.setflags(write=False)
        yield int(index), found


def kept_units(structure: Structure, keep: Keep) -> NDArray[np.bool_]:
    """(U,) which of all units are kept. Raises BadInput or UnknownName."""
    if keep is None:
        return np.ones(int(structure.offsets[-1]), dtype=np.bool_)
    kept = np.ones(int(structure.offsets[-1]), dtype=np.bool_)
    for name, indices in explicit(structure, keep).items():
        index = structure.names.index(name)
        start, size = int(structure.offsets[index]), structure.group_sizes[index]
        kept[start : start + size] = False
        kept[start + indices] = True
    return kept


def stays(plans: Sequence[AxisPlan], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) which indices of one axis stay when these units (U,) are kept."""
    result = np.ones(len(plans[0].units), dtype=np.bool_)
    for plan in plans:
        result &= (plan.units < 0) | kept[plan.units]
    return result


def explicit(structure: Structure, keep: Keep) -> dict[str, IntArray]:
    """Turn any keep into {name: sorted kept indices}, checked."""
    if keep is None:
        return {}
    if isinstance(keep, Mapping):
        return {name: _indices(structure, name, value) for name, value in keep.items()}
    return {
        name: np.arange(count, dtype=np.int64)
        for name, count in zip(structure.names, fraction_counts(structure, keep), strict=True)
    }


def fraction_counts(structure: Structure, keep_fraction: float) -> IntArray:
    """(G,) kept units for one fraction everywhere: rounded down to the grid, at least the minimum."""
    if isinstance(keep_fraction, bool) or not isinstance(keep_fraction, int | float):
        raise BadInput(
            f"keep must be a mapping of group names to kept unit indices or one keep_fraction, "
            f"got {type(keep_fraction).__name__}"
        )
    if not (math.isfinite(keep_fraction) and 0 < keep_fraction <= 1):
        raise BadInput(f"keep_fraction must be in (0, 1], got {keep_fraction}")
    if keep_fraction == 1:
        return structure.sizes
    grid = structure.round_to
    wanted = np.floor(structure.sizes * keep_fraction / grid + 1e-9).astype(np.int64) * grid
    return np.maximum(wanted, structure.min_counts)


def _indices(structure: Structure, name: str, value: Any) -> IntArray:
    if name not in structure.names:
        raise unknown_name("group", name, structure.names)
    size = structure.group_sizes[structure.names.index(name)]
    try:
        raw = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"keep[{name!r}] must be a sequence of unit indices: {error}") from error
    if raw.ndim != 1 or (raw.size and raw.dtype.kind not in "iu"):
        raise BadInput(f"keep[{name!r}] must be a flat sequence of integer unit indices in 0..{size - 1}")
    if not raw.size:
        raise BadInput(f"keep[{name!r}] is empty: at least {min(structure.round_to, size)} of {size} units must stay")
    indices = np.unique(raw.astype(np.int64))
    if len(indices) != len(raw):
        raise BadInput(f"keep[{name!r}] names a unit twice; name each of 0..{size - 1} at most once")
    if indices[0] < 0 or indices[-1] >= size:
        wrong = indices[0] if indices[0] < 0 else indices[-1]
        raise BadInput(f"keep[{name!r}] has unit {wrong}; the group has units 0..{size - 1}")
    _check_count(structure, name, size, len(indices))
    return indices


def _check_count(structure: Structure, name: str, size: int, count: int) -> None:
    if count == size or (count >= 1 and count % structure.round_to == 0 and count < size):
        return
    grid = f"a multiple of round_to={structure.round_to}" if structure.round_to > 1 else "at least 1"
    raise BadInput(f"group {name!r}: {count} of {size} units kept; the number must be {grid}, or all {size}")


def check_counts(structure: Structure, counts: NDArray[Any]) -> None:
    """Raise BadInput unless counts (G,) can be kept."""
    counts = np.asarray(counts)
    if counts.shape != structure.sizes.shape:
        raise BadInput(f"counts must have one entry for each of {len(structure.sizes)} groups, got {counts.shape}")
    for name, size, count in zip(structure.names, structure.group_sizes, counts.tolist(), strict=True):
        if count != int(count):
            raise BadInput(f"group {name!r}: the number of kept units must be whole, got {count}")
        _check_count(structure, name, size, int(count))


def restrict(structure: Structure, keep: Keep) -> Structure:
    """The structure of the cut model. Units keep their order and are numbered anew."""
    kept = kept_units(structure, keep)
    if kept.all():
        return structure
    counts = structure.counts(keep)
    number = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int64)
    left = {key: stays(plans, kept) for key, plans in structure.plans_by_axis.items()}
    axes = tuple(_restricted(plan, left[plan.tensor, plan.axis], number) for plan in structure.axes)
    tensors = dict(structure.tensors)
    for plan in axes:
        old = tensors[plan.tensor]
        shape = (*old.shape[: plan.axis], len(plan.units), *old.shape[plan.axis + 1 :])
        tensors[plan.tensor] = Tensor(shape, old.is_parameter)
    lengths = {name: int(indices.sum()) for (name, _), indices in left.items()}
    widths = structure.layer_widths(counts)
    digest = hashlib.sha256(structure.fingerprint.encode() + np.packbits(kept).tobytes()).hexdigest()
    return dataclasses.replace(
        structure,
        group_sizes=tuple(int(count) for count in counts),
        tensors=tensors,
        axes=axes,
        counters=tuple(_restricted(plan, left[plan.tensor, 0], number) for plan in structure.counters),
        products=tuple(
            dataclasses.replace(p, axes=tuple((name, lengths.get(name, length)) for name, length in p.axes))
            for p in structure.products
        ),
        rescales=tuple(_rescaled(item, left, lengths) for item in structure.rescales),
        views=tuple(
            dataclasses.replace(v, axes=tuple((axis, lengths.get(name, n), name) for axis, n, name in v.axes))
            if v.module not in structure.resized
            else v
            for v in structure.views
        ),
        parts=tuple(
            dataclasses.replace(p, lengths=tuple((lengths.get(name, n), name) for n, name in p.lengths))
            if p.module not in structure.resized
            else p
            for p in structure.parts
        ),
        layers=tuple(_narrowed(layer, row) for layer, row in zip(structure.layers, widths, strict=True)),
        fingerprint=digest,
    )


def _restricted(plan: AxisPlan, left: NDArray[np.bool_], number: IntArray) -> AxisPlan:
    found = plan.units[left]
    units = np.where(found < 0, -1, number[found]).astype(np.int64)
    units.setflags(write=False)
    return dataclasses.replace(plan, units=units)


def _rescaled(item: Rescale, left: Mapping[tuple[str, int], NDArray[np.bool_]], lengths: Mapping[str, int]) -> Rescale:
    rows, kept = item.rows, left.get((item.tensor, 0))
    if kept is not None:
        rows = (np.cumsum(kept) - 1)[rows[kept[rows]]]
    return dataclasses.replace(item, rows=rows, length=lengths.get(item.counter, item.length))


def _narrowed(layer: Layer, widths: NDArray[np.float64]) -> Layer:
    into, out = round(float(widths[0])), round(float(widths[1]))
    depthwise = layer.groups > 1 and layer.groups == layer.in_features
    return dataclasses.replace(layer, in_features=into, out_features=out, groups=into if depthwise else layer.groups)
