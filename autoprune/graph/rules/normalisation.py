"""Normalisation: per channel (batch, instance) ties; across channels (layer, group) locks what it averages
over."""

from __future__ import annotations

from autoprune.graph.labels import Axis, Value
from autoprune.graph.parts import Role
from autoprune.graph.relations import Operation, Relations

_ROLES = {
    "weight": Role.NORM_WEIGHT,
    "bias": Role.NORM_BIAS,
    "running_mean": Role.NORM_MEAN,
    "running_var": Role.NORM_VAR,
}


def per_channel(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """input (N, C, ...): every vector argument belongs to the channels."""
    value = op.value("input")
    channel: Axis = value.axes[1]
    for name, role in _ROLES.items():
        vector = op.optional(name)
        if vector is not None:
            rel.role(vector, 0, role)
            rel.size(vector, 0, "num_features")
            channel = rel.tie(channel, vector.axes[0], op, "normalises channels that cannot be cut")
    if all(op.optional(name) is None for name in _ROLES) and channel is not None:
        rel.counter(op.module, "num_features", channel, op)
    axes = (value.axes[0], channel, *value.axes[2:])
    return tuple(Value(shape, axes if shape == value.shape else (None,) * len(shape)) for shape in op.shapes)


def layer_norm(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Statistics run over the last axes: removing a channel changes them, so these axes stay whole."""
    value = op.value("input")
    kept = len(value.shape) - len(op.ints("normalized_shape"))
    why = op.why("statistics are taken over the channels")
    for axis in value.axes[kept:]:
        rel.labels.lock(axis, why)
    _lock_vectors(op, rel)
    return (Value(op.shape, (*value.axes[:kept], *(None for _ in value.axes[kept:]))),)


def group_norm(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Statistics run over each group of channels, so whole groups are the units: without its channels a group
    changes no other one. A single group stays whole."""
    value, groups = op.value("input"), op.integer("num_groups")
    why = op.why("statistics are taken over groups of channels")
    for axis in value.axes[2:]:
        rel.labels.lock(axis, why)
    channel = value.axes[1]
    if groups == 1 or channel is None:
        rel.labels.lock(channel, why)
        _lock_vectors(op, rel)
        return (Value(op.shape, (value.axes[0], *(None for _ in value.axes[1:]))),)
    table = channel.reshape(groups, -1)
    for column in table.T[1:]:
        rel.tie(table[:, 0], column, op, "one group of a group normalisation")
    for name in ("weight", "bias"):
        vector = op.optional(name)
        if vector is not None:
            rel.role(vector, 0, _ROLES[name])
            channel = rel.tie(channel, vector.axes[0], op, "normalises channels that cannot be cut")
            rel.size(vector, 0, "num_channels")
            rel.size(vector, 0, "num_groups", divide=table.shape[1])
    if op.optional("weight") is None:
        rel.counter(op.module, "num_groups", table[:, 0], op)
        rel.counter(op.module, "num_channels", table.reshape(-1), op)
    return (Value(op.shape, (value.axes[0], channel, *(None for _ in value.axes[2:]))),)


def _lock_vectors(op: Operation, rel: Relations) -> None:
    for name in ("weight", "bias"):
        vector = op.optional(name)
        if vector is not None:
            for axis in range(len(vector.shape)):
                rel.role(vector, axis, _ROLES[name])
            rel.lock_all(vector, op.why("statistics are taken over the channels"))


RULES = {
    "batch_norm": per_channel,
    "_native_batch_norm_legit_no_training": per_channel,
    "_native_batch_norm_legit": per_channel,
    "native_batch_norm": per_channel,
    "_batch_norm_impl_index": per_channel,
    "cudnn_batch_norm": per_channel,
    "instance_norm": per_channel,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "rms_norm": layer_norm,
}
