"""Products of activations: attention in all its spellings, and other batched matrix products.

Batch axes are tied, and so is the axis that is summed over: a removed index is zero there and adds nothing.
"""

from __future__ import annotations

from typing import cast

from autoprune.graph.labels import Axis, Value
from autoprune.graph.relations import Operation, Relations


def matmul(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """(..., M, K) @ (..., K, N), batch axes broadcast."""
    first, second = op.values()[-2:]
    if len(first.shape) < 2 or len(second.shape) < 2:
        for value in (first, second):
            rel.lock_all(value, op.why("a product with a vector"))
        return (Value(op.shape, (None,) * len(op.shape)),)
    batch = [_aligned(op, rel, [first, second], axis) for axis in range(len(op.shape) - 2)]
    inner = rel.tie(first.axes[-1], second.axes[-2], op, _FIXED)
    rel.weight(first, len(first.shape) - 2, len(first.shape) - 1)
    rel.weight(second, len(second.shape) - 1, len(second.shape) - 2)
    rows, columns = first.axes[-2], second.axes[-1]
    sizes = (*op.shape[:-2], op.shape[-2], op.shape[-1], first.shape[-1])
    _note(op, rel, batch, [inner, columns])
    if op.origin is not None:
        rel.rescale(first, op)
    rel.product(op, sizes, (*batch, rows, columns, inner))
    out = Value(op.shape, (*batch, rows, columns))
    if op.name == "baddbmm":
        return _added(op, rel, out)
    return (out,)


def _added(op: Operation, rel: Relations, out: Value) -> tuple[Value, ...]:
    bias = op.values()[0]
    axes = [
        rel.tie(axis, bias.axes[i], op, _FIXED) if bias.shape[i] == out.shape[i] else axis
        for i, axis in enumerate(out.axes)
    ]
    return (Value(out.shape, tuple(axes)),)


def _aligned(op: Operation, rel: Relations, values: list[Value], axis: int) -> Axis:
    """Batch axis of the result: the labels of all arguments that are not broadcast along it."""
    places = [(v, axis - len(op.shape) + len(v.shape)) for v in values]
    found = [v.axes[i] for v, i in places if i >= 0 and v.shape[i] == op.shape[axis]]
    if op.shape[axis] == 1 or not found:
        return None
    result = found[0]
    for other in found[1:]:
        result = rel.tie(result, other, op, _FIXED)
    return result


def attention(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """query (..., L, E), key (..., S, E), value (..., S, V); without a given scale, E decides on it."""
    query, key, value = (op.value(name) for name in ("query", "key", "value"))
    mask = op.optional("attn_mask")
    values = [query, key, value]
    if op.arguments.get("enable_gqa"):
        for item in values:
            rel.lock_all(item, op.why("grouped queries"))
    rank = len(op.shape)
    batch = [_aligned(op, rel, values, axis) for axis in range(rank - 2)]
    inner = rel.tie(query.axes[-1], key.axes[-1], op, _FIXED)
    _note(op, rel, batch, [inner, value.axes[-1]])
    if mask is not None:
        for axis in range(rank - 2):
            place = axis - rank + len(mask.shape)
            if place >= 0 and mask.shape[place] == op.shape[axis]:
                batch[axis] = rel.tie(batch[axis], mask.axes[place], op, "masked per head by something fixed")
    for tokens in (query.axes[-2], key.axes[-2], value.axes[-2]):
        rel.labels.lock(tokens, op.why("the softmax combines all of these"))
    if op.arguments.get("scale") is None:
        rel.rescale(query, op)
    lengths = (query.shape[-2], key.shape[-2])
    rel.product(op, (*op.shape[:-2], *lengths, query.shape[-1]), (*batch, None, None, inner))
    rel.product(op, (*op.shape[:-2], *lengths, value.shape[-1]), (*batch, None, None, value.axes[-1]))
    return (Value(op.shape, (*batch, query.axes[-2], value.axes[-1])), *_rest(op))


def _rest(op: Operation) -> list[Value]:
    return [Value(shape, (None,) * len(shape)) for shape in op.shapes[1:]]


def _note(op: Operation, rel: Relations, batch: list[Axis], inner: list[Axis]) -> None:
    """Name what these factors are, so that a search can tell heads from dimensions inside them."""
    for axis in batch:
        if axis is not None:
            rel.kinds.append((axis, "head"))
    for axis in inner:
        if axis is not None:
            rel.kinds.append((axis, "head_dim"))


def einsum(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Axes with the same letter are tied. An ellipsis locks."""
    equation = str(op.arguments["equation"]).replace(" ", "")
    values = [v for v in cast("list[object]", op.arguments["tensors"]) if isinstance(v, Value)]
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or "->" not in equation or len(terms) != len(values):
        for value in values:
            rel.lock_all(value, op.why("an einsum with an ellipsis or an implicit result"))
        return (Value(op.shape, (None,) * len(op.shape)),)
    axes: dict[str, Axis] = {}
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, axis, size in zip(term, value.axes, value.shape, strict=True):
            if size > sizes.get(letter, 1) or letter not in sizes:
                sizes[letter], axes[letter] = size, axis
            elif size == sizes[letter] and size > 1:
                axes[letter] = rel.tie(axes[letter], axis, op, _FIXED)
    if len(values) == 2:
        batch = [c for c in right if c in terms[0] and c in terms[1]]
        inner = [c for c in terms[0] if c in terms[1] and c not in right]
        free = [c for c in right if (c in terms[0]) != (c in terms[1])]
        _note(op, rel, [axes[c] for c in batch], [axes[c] for c in (*inner, *free)])
        if inner:
            letters = sorted(sizes)
            rel.product(op, tuple(sizes[c] for c in letters), tuple(axes[c] for c in letters))
    return (Value(op.shape, tuple(axes[c] for c in right)),)


_FIXED = "multiplied with something that cannot be cut"

RULES = {
    **dict.fromkeys(("matmul", "bmm", "baddbmm", "mm"), matmul),
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
}
