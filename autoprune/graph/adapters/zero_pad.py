"""Zero-padding shortcuts: a module whose ints `pad_before` and `pad_after` are the channels it pads.

As in the CIFAR residual networks of He et al., CVPR 2016, arXiv 1512.03385 (option A). The pad is found on
whatever axis has these two widths.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from autoprune.graph.labels import IntArray, Value
from autoprune.graph.relations import Operation


def sizes(module: nn.Module, op: Operation, result: Value) -> Iterator[tuple[str, IntArray]]:
    """Yield the labels of the zeros before and after."""
    if op.name not in ("pad", "constant_pad_nd"):
        return
    before, after = getattr(module, "pad_before", None), getattr(module, "pad_after", None)
    if not isinstance(before, int) or not isinstance(after, int):
        return
    widths = op.ints("pad")
    for i in range(len(widths) // 2):
        labels = result.axes[len(result.axes) - 1 - i]
        if labels is not None and (widths[2 * i], widths[2 * i + 1]) == (before, after) != (0, 0):
            yield "pad_before", labels[:before]
            yield "pad_after", labels[len(labels) - after :]
            return
