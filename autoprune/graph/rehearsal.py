"""A backward pass that shows whether it can run, in hardly any memory: its gradients are of no use.

Training holds every activation for the backward pass, and a gradient for every parameter, which together are several
times a model's size. Here autograd keeps the shapes of activations only and gets ones in their place. What can go
wrong still does: a missing gradient function, shapes that do not fit, a tensor that was needed and has been
overwritten in place since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class _Saved:
    """What autograd keeps of a tensor. counter: an empty tensor that counts versions with the one that was saved."""

    shape: torch.Size
    stride: tuple[int, ...]
    counter: Tensor
    version: int


def backward(model: nn.Module, forward: Callable[[], Sequence[Tensor]]) -> None:
    """Run `forward` and the backward pass of its outputs, for the parameters of `model`. Raises what they raise."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    held = {p.untyped_storage().data_ptr() for p in parameters}
    hooks = [p.register_post_accumulate_grad_hook(_drop) for p in parameters]  # type: ignore[no-untyped-call]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: _pack(t, held), _unpack):
            outputs = [output.sum() for output in forward() if output.requires_grad]
            if outputs:
                torch.stack(outputs).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _pack(tensor: Tensor, held: set[int]) -> _Saved | tuple[Tensor, int]:
    if tensor.layout is not torch.strided or tensor.untyped_storage().data_ptr() in held:
        return tensor, tensor._version
    counter = tensor.detach()
    # Keeps the version counter that the two share, and lets go of the memory.
    counter.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return _Saved(tensor.shape, tensor.stride(), counter, tensor._version)


def _unpack(saved: _Saved | tuple[Tensor, int]) -> Tensor:
    kept, version = (saved.counter, saved.version) if isinstance(saved, _Saved) else saved
    if kept._version != version:
        raise RuntimeError("a tensor that the backward pass needs has been modified by an inplace operation")
    if not isinstance(saved, _Saved):
        return kept
    blank = torch.empty_strided(saved.shape, saved.stride, dtype=kept.dtype, device=kept.device)
    # Ones divide and have logarithms; zero is an index that every tensor has.
    return blank.fill_(1 if kept.is_floating_point() or kept.is_complex() else 0)
