"""A structure as JSON, and as rows for a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.errors import BadInput
from autoprune.graph.parts import (
    AxisPlan,
    BlockPlan,
    Call,
    FixedBlock,
    FrozenGroup,
    IntArray,
    Layer,
    Part,
    Product,
    Rescale,
    Role,
    SizeAttribute,
    Tensor,
    Term,
    View,
)

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure

FORMAT = 3


def to_json(structure: Structure) -> str:
    """Deterministic JSON text of the whole plan."""
    data: dict[str, Any] = {f.name: getattr(structure, f.name) for f in dataclasses.fields(structure)}
    for name in ("axes", "counters"):
        data[name] = [[p.tensor, p.axis, p.role.value, p.module, _runs(p.units)] for p in getattr(structure, name)]
    for name in ("attributes", "terms", "products", "layers", "frozen", "block_plans", "fixed_blocks"):
        data[name] = [dataclasses.asdict(item) for item in data[name]]
    data["parts"] = [[p.module, p.rank, p.axis, p.lengths] for p in structure.parts]
    data["views"] = [[v.module, v.rank, v.axes] for v in structure.views]
    data["rescales"] = [[r.tensor, r.rows.tolist(), r.counter, r.length] for r in structure.rescales]
    data["tensors"] = {name: [list(t.shape), t.is_parameter] for name, t in structure.tensors.items()}
    return json.dumps({"format": FORMAT, **data}, separators=(",", ":"))


def from_json(text: str) -> dict[str, Any]:
    """Fields of the structure that `to_json` wrote. Raises BadInput."""
    try:
        data = json.loads(text)
        version = data.pop("format")
        if version != FORMAT:
            raise BadInput(f"structure of format {version}; this version reads {FORMAT}. Trace the model again")
        for name in ("axes", "counters"):
            data[name] = tuple(AxisPlan(t, a, Role(r), m, _units(u)) for t, a, r, m, u in data[name])
        data["attributes"] = tuple(SizeAttribute(**item) for item in data["attributes"])
        data["terms"] = tuple(Term(**item) for item in data["terms"])
        data["products"] = tuple(
            Product(item["coefficient"], tuple((name, length) for name, length in item["axes"]), item["module"])
            for item in data["products"]
        )
        data["views"] = tuple(
            View(module, rank, tuple((axis, length, name) for axis, length, name in axes))
            for module, rank, axes in data["views"]
        )
        data["parts"] = tuple(
            Part(module, rank, axis, tuple((length, name) for length, name in lengths))
            for module, rank, axis, lengths in data["parts"]
        )
        data["rescales"] = tuple(Rescale(t, np.array(r, dtype=np.int64), c, n) for t, r, c, n in data["rescales"])
        data["frozen"] = tuple(FrozenGroup(**item) for item in data["frozen"])
        data["block_plans"] = tuple(BlockPlan(**item) for item in data["block_plans"])
        data["fixed_blocks"] = tuple(FixedBlock(**item) for item in data["fixed_blocks"])
        data["layers"] = tuple(_layer(item) for item in data["layers"])
        data["tensors"] = {name: Tensor(tuple(shape), kind) for name, (shape, kind) in data["tensors"].items()}
        for name in ("names", "group_sizes", "kinds", "resized", "unsupported", "skipped"):
            data[name] = tuple(data[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"not a structure written by autoprune: {error!r}. Trace the model again") from error
    return dict(data)


def _runs(units: IntArray) -> list[list[int]]:
    """Run lengths [first, step, repeat, count]: first, first + step ..., each `repeat` times."""
    change = np.flatnonzero(np.diff(units)) + 1
    starts = np.concatenate([[0], change])
    repeats = np.diff(np.concatenate([starts, [len(units)]])).tolist()
    runs: list[list[int]] = []
    for value, repeat in zip(units[starts].tolist(), repeats, strict=True):
        if runs and runs[-1][2] == repeat and runs[-1][3] == 1 and value != runs[-1][0]:
            runs[-1][1], runs[-1][3] = value - runs[-1][0], 2
        elif runs and runs[-1][2] == repeat and value == runs[-1][0] + runs[-1][1] * runs[-1][3] and runs[-1][1]:
            runs[-1][3] += 1
        else:
            runs.append([value, 0, repeat, 1])
    return runs


def _units(runs: list[list[int]]) -> IntArray:
    parts = [np.repeat(first + step * np.arange(count), repeat) for first, step, repeat, count in runs]
    units = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
    units.setflags(write=False)
    return units


def _layer(item: Mapping[str, Any]) -> Layer:
    fields = dict(item)
    for name in ("kernel", "stride", "padding", "dilation"):
        fields[name] = tuple(fields[name])
    fields["calls"] = tuple(Call(tuple(call["in_positions"]), tuple(call["out_positions"])) for call in fields["calls"])
    return Layer(**fields)


def describe(structure: Structure) -> dict[str, Any]:
    """Rows for a pre-flight table. Shares: what the group alone can give up, down to its minimum, of the
    whole."""
    sizes, least = structure.sizes, structure.min_counts
    flops, params = structure.total_flops(sizes), structure.total_params(sizes)
    rows = []
    for index, name in enumerate(structure.names):
        counts = sizes.copy()
        counts[index] = least[index]
        rows.append(
            {
                "name": name,
                "kind": structure.kinds[index],
                "units": int(sizes[index]),
                "min_units": int(least[index]),
                "flops_share": (flops - structure.total_flops(counts)) / flops if flops else 0.0,
                "params_share": (params - structure.total_params(counts)) / params if params else 0.0,
            }
        )
    shorter = structure.without_blocks([block.name for block in structure.blocks])
    return {
        "flops": round(flops),
        "params": round(params),
        "units": int(sizes.sum()),
        "reachable_flops": list(structure.reachable_flops),
        "reachable_params": [structure.total_params(least) / params if params else 1.0, 1.0],
        "reachable_with_blocks": [shorter.total_flops(shorter.min_counts) / flops if flops else 1.0, 1.0],
        "verified": structure.verified,
        "groups": rows,
        "frozen": [dataclasses.asdict(item) for item in structure.frozen],
        "unsupported": list(structure.unsupported),
        "blocks": [
            {
                "name": block.name,
                "flops_share": block.flops / flops if flops else 0.0,
                "params_share": block.params / params if params else 0.0,
                "first_of_stage": block.first,
            }
            for block in structure.blocks
        ],
        "fixed_blocks": [dataclasses.asdict(item) for item in structure.fixed_blocks],
    }
