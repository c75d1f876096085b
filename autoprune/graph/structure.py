"""The structure of a model: which channels live where, what they cost, how to cut them. Immutable plain
data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoprune.errors import unknown_name
from autoprune.graph import keeping, serial, skipping, surgery
from autoprune.graph.cost import CostTable
from autoprune.graph.keeping import Keep
from autoprune.graph.parts import (
    AxisPlan,
    Block,
    BlockPlan,
    FixedBlock,
    FrozenGroup,
    Group,
    IntArray,
    Layer,
    Part,
    Place,
    Product,
    Rescale,
    Role,
    SizeAttribute,
    Tensor,
    Term,
    View,
)
from autoprune.graph.surgery import Selection

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Structure:
    """The plan of one model. Build it with `trace`. Independent of the model instance, picklable, JSON-able.

    `axes` are those axes of parameters and buffers that hold units; `counters` are label counts that only
    size attributes, products and views use.
    `resized` are the modules whose `views` and `parts` follow a cut. `flops_fixed` is what no group changes.
    `block_plans` are the residual blocks that can be skipped, `fixed_blocks` those that cannot, `skipped` what this
    model does without already. Everything else is derived.
    """

    names: tuple[str, ...]
    group_sizes: tuple[int, ...]
    kinds: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    axes: tuple[AxisPlan, ...]
    counters: tuple[AxisPlan, ...]
    attributes: tuple[SizeAttribute, ...]
    terms: tuple[Term, ...]
    products: tuple[Product, ...]
    rescales: tuple[Rescale, ...]
    views: tuple[View, ...]
    parts: tuple[Part, ...]
    resized: tuple[str, ...]
    flops_fixed: float
    layers: tuple[Layer, ...]
    frozen: tuple[FrozenGroup, ...]
    unsupported: tuple[str, ...]
    round_to: int
    verified: str
    fingerprint: str
    block_plans: tuple[BlockPlan, ...] = ()
    fixed_blocks: tuple[FixedBlock, ...] = ()
    skipped: tuple[str, ...] = ()

    # ---- groups

    @cached_property
    def sizes(self) -> IntArray:
        """(G,) number of units of each group."""
        return np.array(self.group_sizes, dtype=np.int64)

    @cached_property
    def min_counts(self) -> IntArray:
        """(G,) the fewest units that may be kept."""
        return np.minimum(self.sizes, self.round_to)

    @cached_property
    def offsets(self) -> IntArray:
        """(G + 1,) first unit number of each group."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups that can be cut, in graph order."""
        places: list[list[Place]] = [[] for _ in self.names]
        for plan in self.axes:
            for index, found in keeping.indices_by_group(plan.units, self.offsets):
                places[index].append(Place(plan.tensor, plan.axis, plan.role, plan.module, found))
        saved = self._saved_per_unit
        return tuple(
            Group(name, self.group_sizes[i], tuple(places[i]), float(saved[i]), self.kinds[i])
            for i, name in enumerate(self.names)
        )

    @cached_property
    def plans_by_axis(self) -> Mapping[tuple[str, int], tuple[AxisPlan, ...]]:
        """The plans of every axis and counter; an index stays when all of its plans keep it."""
        found: dict[tuple[str, int], tuple[AxisPlan, ...]] = {}
        for plan in (*self.axes, *self.counters):
            key = (plan.tensor, plan.axis)
            found[key] = (*found.get(key, ()), plan)
        return found

    def group(self, name: str) -> Group:
        """Return the group of that name. Raises UnknownName."""
        if name not in self._index:
            raise unknown_name("group", name, self.names)
        return self.groups[self._index[name]]

    @cached_property
    def stages(self) -> Mapping[str, str]:
        """The stage of every group: the spatial size at which its units are computed, such as `32x32`.

        Where producing layers differ, the largest; `1` for units that have no positions, or whose layers are unknown.
        """
        by_weight = {layer.weight: layer for layer in self.layers}
        found: dict[str, str] = {}
        for group in self.groups:
            places = group.places_with(Role.OUTPUT) or group.places_with(Role.DEPTHWISE)
            calls = [call for p in places if p.tensor in by_weight for call in by_weight[p.tensor].calls]
            sizes = max((call.out_positions for call in calls), key=lambda size: (math.prod(size), size), default=())
            found[group.name] = "x".join(map(str, sizes)) or "1"
        return found

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    # ---- blocks

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The residual blocks that can be skipped, with what each alone saves, in graph order."""
        return skipping.blocks(self)

    def without_blocks(self, blocks: Sequence[str]) -> Structure:
        """The structure of the model without these blocks: same group names, fewer groups, no new trace.

        Raises UnknownName, or BadInput for a block that cannot be skipped.
        """
        return skipping.without_blocks(self, blocks)

    def skip_blocks(self, model: nn.Module, blocks: Sequence[str]) -> nn.Module:
        """Return a copy of `model` with an identity in place of these blocks. Raises as `without_blocks` does."""
        return skipping.skip_blocks(self, model, blocks)

    # ---- cost

    @cached_property
    def cost(self) -> CostTable:
        """Closed-form cost."""
        return CostTable.build(self)

    @cached_property
    def _saved_per_unit(self) -> FloatArray:
        full = self.total_flops(self.sizes)
        less = self.sizes[None, :] - np.eye(len(self.sizes), dtype=np.int64)
        return np.array([full - self.total_flops(row) for row in less], dtype=np.float64)

    def total_flops(self, counts: NDArray[Any]) -> float:
        """FLOPs for one sample with counts (G,) kept units of each group. Not validated: this is the fast
        path."""
        return self.cost.flops(counts)

    def total_params(self, counts: NDArray[Any]) -> float:
        """Parameters with counts (G,) kept units of each group."""
        return self.cost.params(counts)

    def layer_widths(self, counts: NDArray[Any]) -> FloatArray:
        """(L, 2) kept in and out features of each layer; in features of a grouped convolution over all its
        groups."""
        return self.cost.layer_widths(counts)

    def layer_flops(self, counts: NDArray[Any]) -> FloatArray:
        """(L,) FLOPs of each layer, all its calls together."""
        return self.cost.layer_flops(counts)

    def check_counts(self, counts: NDArray[Any]) -> None:
        """Raise BadInput unless counts (G,) are numbers of units that may be kept."""
        keeping.check_counts(self, counts)

    def flops(self, keep: Keep = None) -> int:
        """FLOPs of the cut model for one sample, as torch.utils.flop_counter counts them."""
        return round(self.total_flops(self.counts(keep)))

    def params(self, keep: Keep = None) -> int:
        """Number of parameters of the cut model."""
        return round(self.total_params(self.counts(keep)))

    @property
    def reachable_flops(self) -> tuple[float, float]:
        """(lowest, highest) fraction of the FLOPs; the lowest keeps the fewest units everywhere."""
        full = self.total_flops(self.sizes)
        return (self.total_flops(self.min_counts) / full if full else 1.0, 1.0)

    # ---- keeping and cutting

    def counts(self, keep: Keep = None) -> IntArray:
        """(G,) number of kept units. Raises BadInput or UnknownName for a keep that cannot be."""
        kept = keeping.kept_units(self, keep)
        return np.add.reduceat(kept, self.offsets[:-1]).astype(np.int64) if len(self.names) else self.sizes

    def selection(self, keep: Keep, skip: Sequence[str] = ()) -> Selection:
        """The cut as plain data: kept indices by tensor and axis, new values of size attributes, skipped blocks.

        keep: by groups that the model without the blocks in `skip` still has.
        """
        return surgery.select(self, keep, skip)

    def cut(
        self, model: nn.Module, keep: Keep, skip: Sequence[str] = (), *, dtype: torch.dtype | None = None
    ) -> nn.Module:
        """Return a really smaller copy of `model`, without the blocks in `skip`. The model stays as it is.

        dtype: precision of the copy, if not the model's own. Raises WrongArtefact if the model does not fit.
        """
        return surgery.cut(self, model, keep, skip, dtype=dtype)

    def mask(self, model: nn.Module, keep: Keep) -> nn.Module:
        """Return a full-size copy whose removed units are zero: what computes, shifts and scales them."""
        return surgery.mask(self, model, keep)

    def restrict(self, keep: Keep) -> Structure:
        """The structure of the cut model: same group names, units renumbered in order, no new trace."""
        return keeping.restrict(self, keep)

    def describe(self) -> dict[str, Any]:
        """Plain rows for a pre-flight table."""
        return serial.describe(self)

    # ---- storage

    def to_json(self) -> str:
        """Deterministic JSON text."""
        return serial.to_json(self)

    @staticmethod
    def from_json(text: str) -> Structure:
        """Read what `to_json` wrote. Raises BadInput."""
        return Structure(**serial.from_json(text))

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Structure:
        return self
