"""What verification runs on: a model on which errors show, and inputs.

Everything is compared in float64. Between two tries the model lies in its own types: a float64 copy of a model and a
cut copy beside it would be four times its size.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import surgery, tracer


@dataclass(frozen=True, eq=False)
class Bench:
    """A model on which errors show, and inputs. training is None when it cannot train on them; chances: number of
    training passes; resting: its tensors and the types that they have between two tries."""

    model: nn.Module
    inputs: tracer.Inputs
    training: tracer.Inputs | None
    shapes: Any
    dtype: torch.dtype
    flops: float
    chances: int
    resting: tuple[tuple[Tensor, torch.dtype], ...]

    @staticmethod
    def build(model: nn.Module, inputs: tracer.Inputs, chances: int = 1, *, own: bool = False) -> Bench:
        """In float64 where the model can, else in float32. own: change this model, which then rests in its types."""
        ready = (model if own else copy.deepcopy(model)).eval().requires_grad_(False)
        tensors = [t for t in (*ready.parameters(), *ready.buffers()) if t.is_floating_point() or t.is_complex()]
        before = [t.dtype for t in tensors]
        for dtype in (torch.float64, torch.float32):
            _cast(tensors, [surgery.widened(t, dtype) for t in tensors])
            given = _random_like(inputs, dtype)
            counter = FlopCounterMode(display=False)
            try:
                with counter:
                    ready(*given[0], **given[1])
            except Exception:
                # Some module makes tensors of a fixed type; float32 is the type it was written for.
                continue
            break
        _randomise(ready)
        twice = tracer.twice(given)
        found = _train_shapes(ready, twice)
        resting = tuple(zip(tensors, before if own else [t.dtype for t in tensors], strict=True))
        if own:
            _cast(tensors, before)
        return Bench(
            ready,
            given,
            None if isinstance(found, Exception) else twice,
            found,
            dtype,
            float(counter.get_total_flops()),
            chances,
            resting,
        )

    @property
    def precision(self) -> str:
        """float64 or float32."""
        return str(self.dtype).removeprefix("torch.")

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """With the model in the precision of the comparison."""
        tensors = [tensor for tensor, _ in self.resting]
        _cast(tensors, [surgery.widened(tensor, self.dtype) for tensor in tensors])
        try:
            yield
        finally:
            _cast(tensors, [dtype for _, dtype in self.resting])


def _cast(tensors: list[Tensor], dtypes: list[torch.dtype]) -> None:
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        tensor.data = tensor.data.to(dtype)


def _random_like(inputs: tracer.Inputs, dtype: torch.dtype) -> tracer.Inputs:
    def convert(item: Any) -> Any:
        if isinstance(item, Tensor) and item.is_floating_point():
            return item.to(dtype) + torch.randn(item.shape, dtype=dtype, device=item.device)
        return item

    result: tracer.Inputs = pytree.tree_map(convert, inputs)
    return result


def _randomise(model: nn.Module) -> None:
    """Replace constant parameters: a scale of zero or equal biases would hide a wrong index."""
    for name, parameter in model.named_parameters():
        if (
            not parameter.is_floating_point()
            or parameter.numel() < 2
            or not (parameter == parameter.flatten()[0]).all()
        ):
            continue
        noise = torch.randn_like(parameter)
        if parameter.dim() > 1:
            parameter.copy_(noise / (parameter.numel() / parameter.shape[0]) ** 0.5)
        elif name.endswith("bias"):
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_(1 + 0.2 * noise)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)


def _train_shapes(model: nn.Module, inputs: tracer.Inputs) -> Any:
    """Shapes of a training pass, or the exception. Leaves fitting statistics, so that signals keep their
    size."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    try:
        return shapes(model(*inputs[0], **inputs[1]))
    except Exception as error:
        return error
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean))
                norm.running_var.mul_(0.8 + 0.4 * torch.rand_like(norm.running_var)).clamp_(min=1e-3)


def leaves(output: Any) -> list[Tensor]:
    """All tensors of an output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in leaves(output)]
