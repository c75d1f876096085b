"""Attention modules that keep their sizes in attributes: heads, dimensions of a head, and their product.

The names are those that transformer libraries use. An attribute follows a view of the module itself whose axis has
the size that the attribute says.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from autoprune.graph.labels import IntArray, Value
from autoprune.graph.relations import Operation

_VIEWS = ("view", "reshape", "unflatten", "_unsafe_view", "flatten")
_HEADS = (
    "num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads", "num_kv_heads", "num_key_value_heads",
)  # fmt: skip
_DIMENSIONS = (
    "head_dim", "dim_head", "attention_head_size", "d_k", "d_v", "key_dim", "qk_dim", "value_dim", "attn_dim",
    "all_head_size", "inner_dim", "dim_out", "d", "dh", "val_dim", "dim_head_v", "dim_head_k", "attention_dim",
)  # fmt: skip


def sizes(module: nn.Module, op: Operation, result: Value) -> Iterator[tuple[str, IntArray]]:
    """Yield every such attribute with the labels it counts."""
    if op.name not in _VIEWS or isinstance(module, nn.MultiheadAttention):
        # torch's own has a forward pass of its own here, see multihead_attention.
        return
    for name in (*_HEADS, *_DIMENSIONS):
        held = getattr(module, name, None)
        if not isinstance(held, int) or isinstance(held, bool):
            continue
        found = [axis for axis, labels in enumerate(result.axes) if labels is not None and len(labels) == held]
        if not found or (name in _HEADS and _folded(result, held, found)):
            continue
        # (..., 3, heads, dimensions): three heads look like the three of q, k, v, eight like eight dimensions.
        ends = name in _HEADS and len(found) > 1 and found[-1] == len(result.axes) - 1
        labels = result.axes[found[-2 if ends else -1]]
        assert labels is not None
        yield name, labels


def _folded(result: Value, heads: int, found: list[int]) -> bool:
    """Whether heads and batch are one axis here, so that what has the size of the heads are their dimensions."""
    others = [labels for axis, labels in enumerate(result.axes) if labels is not None and axis not in found]
    return found == [len(result.axes) - 1] and any(len(a) > heads and len(a) % heads == 0 for a in others)
