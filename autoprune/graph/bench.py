"""What verification runs on: a model on which errors show, and inputs.

Everything is compared in float64. Between two tries the model has its values in its own types, in the memory of the
user's model where they are the same: a float64 copy with a cut copy beside it would be four times the model.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import surgery, tracer


@dataclass(frozen=True, eq=False)
class Bench:
    """A model on which errors show, and inputs. training is None when it cannot train on them; chances: number of
    training passes; resting: its tensors and the values that they have between two tries."""

    model: nn.Module
    inputs: tracer.Inputs
    training: tracer.Inputs | None
    shapes: Any
    dtype: torch.dtype
    flops: float
    chances: int
    resting: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def build(model: nn.Module, inputs: tracer.Inputs, chances: int = 1, *, own: bool = False) -> Bench:
        """In float64 where the model can, else in float32.

        own: take this model, which then rests in its types. What its parameters hold is read only.
        """
        ready = (model if own else copy.deepcopy(model)).eval().requires_grad_(False)
        tensors = [*ready.parameters(), *ready.buffers()]
        before = [t.data for t in tensors]
        for dtype in (torch.float64, torch.float32):
            _widen(tensors, before, dtype)
            given = _random_like(inputs, dtype)
            counter = FlopCounterMode(display=False)
            try:
                with counter:
                    ready(*given[0], **given[1])
            except Exception:
                # Some module makes tensors of a fixed type; float32 is the type it was written for.
                continue
            break
        random = _randomise(ready)
        twice = tracer.twice(given)
        found = _train_shapes(ready, twice)
        if own:
            for tensor, values in zip(tensors, before, strict=True):
                # Parameters that were left as they were lie where they did.
                same = isinstance(tensor, nn.Parameter) and id(tensor) not in random
                tensor.data = values if same else tensor.data.to(values.dtype)
        return Bench(
            ready,
            given,
            None if isinstance(found, Exception) else twice,
            found,
            dtype,
            float(counter.get_total_flops()),
            chances,
            tuple((tensor, tensor.data) for tensor in tensors),
        )

    @property
    def precision(self) -> str:
        """float64 or float32."""
        return str(self.dtype).removeprefix("torch.")

    def shared(self) -> dict[int, Any]:
        """What a copy of the model takes over instead of copying it, for copy.deepcopy: the values of parameters.

        Buffers are copied, because training passes write into them.
        """
        plain = (p for p in self.model.parameters() if type(p) is nn.Parameter)
        return {id(p): nn.Parameter(p.data, requires_grad=False) for p in plain}

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """With the model in the precision of the comparison; what is changed in it meanwhile is forgotten."""
        tensors, values = [tensor for tensor, _ in self.resting], [held for _, held in self.resting]
        _widen(tensors, values, self.dtype)
        try:
            yield
        finally:
            for tensor, held in self.resting:
                tensor.data = held


def _widen(tensors: list[Tensor], values: list[Tensor], dtype: torch.dtype) -> None:
    for tensor, held in zip(tensors, values, strict=True):
        tensor.data = held.to(surgery.widened(held, dtype), copy=True)


def _random_like(inputs: tracer.Inputs, dtype: torch.dtype) -> tracer.Inputs:
    def convert(item: Any) -> Any:
        if isinstance(item, Tensor) and item.is_floating_point():
            return item.to(dtype) + torch.randn(item.shape, dtype=dtype, device=item.device)
        return item

    result: tracer.Inputs = pytree.tree_map(convert, inputs)
    return result


def _randomise(model: nn.Module) -> set[int]:
    """Replace constant parameters: a scale of zero or equal biases would hide a wrong index. Returns their ids."""
    replaced = set()
    for name, parameter in model.named_parameters():
        if (
            not parameter.is_floating_point()
            or parameter.numel() < 2
            or not (parameter == parameter.flatten()[0]).all()
        ):
            continue
        replaced.add(id(parameter))
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
    return replaced


def _train_shapes(model: nn.Module, inputs: tracer.Inputs) -> Any:
    """Shapes of a training pass, or the exception. Leaves fitting statistics, so that signals keep their
    size."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None]
    # torch takes a recurrent layer apart, step by step, to foretell its shapes.
    steps = any(isinstance(m, nn.RNNBase) for m in model.modules())
    if not norms and not steps and (found := _foretold(model, inputs)) is not None:
        return found
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


def _foretold(model: nn.Module, inputs: tracer.Inputs) -> list[tuple[int, ...]] | None:
    """Shapes of a training pass without doing its arithmetic; None where they depend on values."""
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        # A copy of all but the tensors: modules may keep what they compute.
        apart = copy.deepcopy(model, dict(held)).train()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            args, kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, inputs)
            return shapes(apart(*args, **kwargs))
    except Exception:
        # What is wrong, and whether anything is, the pass itself tells.
        return None


def leaves(output: Any) -> list[Tensor]:
    """All tensors of an output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in leaves(output)]
