"""The mean of norms over positions, as global response normalisation has it. Woo et al., CVPR 2023, arXiv 2301.00808.

x * norm / (mean over channels of norms + eps): a removed channel adds nothing to the mean, but must stay in its
divisor. A cut model multiplies this mean by the share of the channels that is left (see `resizing`).
"""

from __future__ import annotations

from autoprune.graph.labels import Axis, Value
from autoprune.graph.parts import Part
from autoprune.graph.relations import Operation, Relations

_NORMS = ("linalg_vector_norm", "norm")


def follows(op: Operation, rel: Relations, value: Value, axis: int) -> bool:
    """Say whether the divisor of this mean over one axis can follow a cut, and note it then.

    A cut model knows a mean by module, rank, axis and length only. So where code of the module, or of one inside it,
    takes another mean along the same axis, both keep all of their channels.
    """
    labels, place = value.axes[axis], (len(value.shape), axis)
    alone = [_alone((scope, *place), rel, labels, op) for scope in op.scopes]
    key = (op.module, *place)
    if labels is None or op.of not in _NORMS or not alone or not alone[-1]:
        return False
    rel.responses[key] = labels
    rel.hints.append((labels, op.why("a mean divides by the number of all these channels")))
    lengths = ((0, ""), (len(labels), rel.counted(labels)), (0, ""))
    rel.parts.setdefault(Part(op.module, *place, lengths))
    return True


def _alone(key: tuple[str, int, int], rel: Relations, labels: Axis, op: Operation) -> bool:
    """Whether all means with this key are over the same channels; else what was noted before stays whole."""
    first = rel.means.setdefault(key, labels)
    if first is labels:
        return True
    rel.labels.lock(rel.responses.get(key), op.why("one module takes the means of several numbers of channels"))
    return False
