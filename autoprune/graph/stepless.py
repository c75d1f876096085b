"""Shapes of recurrent layers at once.

Where no values are computed, torch still takes a recurrent layer apart into its steps, whose shapes it finds out one
by one: of a layer over images that is most of the time that an export takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_OPERATORS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_active: ContextVar[bool] = ContextVar("active", default=False)


@contextlib.contextmanager
def stepless() -> Iterator[None]:
    """Let recurrent layers of fake tensors have shapes only. Nothing changes for other code and other threads."""
    _install()
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


@functools.cache
def _install() -> None:
    """Put a switch before torch's own kernels. A torch without such a table is as slow as it is, not wrong."""
    for name in _OPERATORS:
        operator = getattr(torch.ops.aten, name).input
        kernels = getattr(operator, "py_kernels", {})
        for key, steps in list(kernels.items()):
            if key in (torch._C.DispatchKey.Autograd, torch._C.DispatchKey.CompositeImplicitAutograd):
                kernels[key] = _switch(steps)
                operator._dispatch_cache.clear()


def _switch(steps: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(steps)
    def kernel(given: Tensor, hidden: Any, *rest: Any, **options: Any) -> Any:
        if not _active.get() or options or not isinstance(given, FakeTensor) or torch.is_grad_enabled():
            return steps(given, hidden, *rest, **options)
        return _shaped(given, hidden, *rest)

    return kernel


def _shaped(
    given: Tensor,
    hidden: Tensor | list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Outputs of the shapes and strides that the steps would have. given: (N, L, C), or (L, N, C) unless batch_first.

    hidden: (layers x directions, N, H), for an LSTM a pair, of which the second is the cell.
    """
    states = list(hidden) if isinstance(hidden, list | tuple) else [hidden]
    steps, samples = (given.shape[1], given.shape[0]) if batch_first else given.shape[:2]
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    output = given.new_empty((steps, samples, width))
    return (output.transpose(0, 1) if batch_first else output, *(state.new_empty(state.shape) for state in states))
