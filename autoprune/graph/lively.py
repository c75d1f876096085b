"""Run a model with its one-sided activations leaking, so that no channel is dead.

Whether a cut is exact does not depend on which activation stands there, as long as it makes zero of zero. Behind a relu
some channels give nothing but zeros on the inputs of a verification, and then it cannot be seen whether they are
in the right order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_SLOPE = 0.5
_ONE_SIDED = frozenset({_aten.relu.default, _aten.hardswish.default})
_IN_PLACE = frozenset({_aten.relu_.default, _aten.hardswish_.default, _aten.hardtanh_.default})


class Lively(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, relu, relu6 and hardswish let half of what is negative through, and no limit holds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one operator, or the leaking one in its place."""
        if func in _ONE_SIDED or (func is _aten.hardtanh.default and _from_zero(args)):
            return _aten.leaky_relu.default(args[0], _SLOPE)
        if func in _IN_PLACE and (func is not _aten.hardtanh_.default or _from_zero(args)):
            return _aten.leaky_relu_.default(args[0], _SLOPE)
        return func(*args, **(kwargs or {}))


def _from_zero(args: Any) -> bool:
    return len(args) > 1 and args[1] == 0
