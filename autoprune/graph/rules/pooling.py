"""Pooling and resizing over the last n axes; the axes before them pass."""

from __future__ import annotations

from collections.abc import Callable

from autoprune.graph.labels import Value
from autoprune.graph.relations import Operation, Relations


def over_last(dims: int) -> Callable[[Operation, Relations], tuple[Value, ...]]:
    """Return the rule for an operator that works on the last `dims` axes."""

    def rule(op: Operation, rel: Relations) -> tuple[Value, ...]:
        value = op.values()[0]
        for axis in value.axes[-dims:]:
            rel.labels.lock(axis, op.why("a spatial axis"))
        axes = (*value.axes[:-dims], *(None,) * dims)
        return tuple(Value(shape, axes) for shape in op.shapes)

    return rule


_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
_RESIZES = {
    "upsample_nearest": (1, 2, 3), "_upsample_nearest_exact": (1, 2, 3), "upsample_linear": (1,),
    "upsample_bilinear": (2,), "_upsample_bilinear2d_aa": (2,), "upsample_bicubic": (2,),
    "upsample_trilinear": (3,),
}  # fmt: skip

RULES = {
    **{f"{pool}{n}d": over_last(n) for pool in _POOLS for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": over_last(n) for n in (1, 2, 3)},
    **{f"{name}{n}d": over_last(n) for name, sizes in _RESIZES.items() for n in sizes},
}
