"""What one forward pass shows of every module: how often it is called, on what, and the FLOPs inside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Seen:
    """One module in one forward pass. flops: of all calls, for the whole batch.

    argument: position or keyword of the first argument that has the shape and type of the result; None without one.
    """

    calls: int = 0
    flops: int = 0
    argument: int | str | None = None
    returns_tensor: bool = True


@contextlib.contextmanager
def watching(model: nn.Module, counter: FlopCounterMode) -> Iterator[dict[str, Seen]]:
    """Yield what is filled while the model runs: module path -> what was seen. The hooks go at the end."""
    seen: dict[str, Seen] = {}
    handles = []
    for path, module in model.named_modules():
        if not path:
            continue
        note = seen[path] = Seen()
        handles.append(module.register_forward_pre_hook(_enter(note, counter), with_kwargs=True))
        handles.append(module.register_forward_hook(_leave(note, counter), with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _enter(note: Seen, counter: FlopCounterMode) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        note.calls += 1
        note.flops -= int(counter.get_total_flops())

    return hook


def _leave(note: Seen, counter: FlopCounterMode) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        note.flops += int(counter.get_total_flops())
        note.returns_tensor &= isinstance(result, Tensor)
        if note.returns_tensor:
            places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            alike = (key for key, value in places if _alike(value, result))
            note.argument = next(alike, None)

    return hook


def _alike(value: Any, result: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == result.shape and value.dtype == result.dtype
