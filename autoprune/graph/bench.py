"""What verification runs on: a model on which errors show, and inputs.

Everything is compared in float64. Between two tries the model has its values in its own types, in the memory of the
user's model where they are the same: a float64 copy with a cut copy beside it would be four times the model.

Training passes, in which nothing but shapes counts, run in the types that the model is written for. Their activations,
of twice as many samples, would be four times those of a forward pass in float64.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import failures, surgery, tracer
from autoprune.graph.labels import Why


@dataclass(frozen=True, eq=False)
class Bench:
    """A model on which errors show, and inputs. plain: these for a copy that is `plain`; training: the samples twice,
    for such a copy and for one in the precision of the comparison, None when the model cannot train on them; chances:
    number of training passes; resting: its tensors and the values that they have between two tries."""

    model: nn.Module
    inputs: tracer.Inputs
    plain: tracer.Inputs
    training: tuple[tracer.Inputs, tracer.Inputs] | None
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
        # Parameters that were left as they were lie where they did.
        rest = [
            values if isinstance(t, nn.Parameter) and id(t) not in random else t.data.to(values.dtype)
            for t, values in zip(tensors, before, strict=True)
        ]
        for tensor, values in zip(tensors, rest, strict=True):
            tensor.data = values
        twice = tracer.twice(given)
        found, rest = _trained(ready, tensors, rest, _typed(twice, inputs), None)
        if isinstance(found, Exception):
            found, rest = _trained(ready, tensors, rest, twice, dtype)
        if not own:
            rest = [values.to(surgery.widened(values, dtype)) for values in rest]
        for tensor, values in zip(tensors, rest, strict=True):
            tensor.data = values
        return Bench(
            ready,
            given,
            _typed(given, inputs),
            None if isinstance(found, Exception) else (_typed(twice, inputs), twice),
            found,
            dtype,
            float(counter.get_total_flops()),
            chances,
            tuple(zip(tensors, rest, strict=True)),
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

    def training_problem(
        self, copied: Callable[[], nn.Module], keeps_shapes: Callable[[nn.Module, tracer.Inputs], bool]
    ) -> Why | None:
        """What is wrong with the training pass of a copy that `copied` makes of the model, with its values of then.

        In the types that the model is written for; or in those of the comparison, since what ran in float64 may have
        left values in modules.
        """
        why = None
        for i, inputs in enumerate(self.training or ()):
            with self.ready() if i else contextlib.nullcontext():
                small = copied()
            try:
                fits = keeps_shapes((small if i else plain(small)).train(), inputs)
            except Exception as error:
                why = Why("verification", failures.failing_module(small, error), failures.short(error))
                failures.forget(error)
            else:
                return None if fits else Why("verification", "", "training outputs change their shapes")
        return why

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


def plain(copied: nn.Module) -> nn.Module:
    """The same model in types that run everywhere: half precision becomes float32."""
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.to(_plain(tensor.dtype))
    return copied


def _plain(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _typed(values: tracer.Inputs, like: tracer.Inputs) -> tracer.Inputs:
    """The same inputs in the types of others, except half precision."""

    def convert(item: Any, other: Any) -> Any:
        return item.to(_plain(other.dtype)) if isinstance(item, Tensor) else item

    result: tracer.Inputs = pytree.tree_map(convert, values, like)
    return result


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


def _trained(
    model: nn.Module, tensors: list[Tensor], rest: list[Tensor], inputs: tracer.Inputs, dtype: torch.dtype | None
) -> tuple[Any, list[Tensor]]:
    """Shapes of a training pass or the exception, and the values at rest afterwards. dtype: if not the model's own."""
    if dtype is None and (found := _foretold(model, inputs)) is not None:
        return found, rest
    for tensor, values in zip(tensors, rest, strict=True):
        tensor.data = values.to(surgery.widened(values, dtype) if dtype else _plain(values.dtype), copy=True)
    found = _train_shapes(model, inputs)
    # Of what the pass has changed only statistics stay.
    after = [
        values if isinstance(tensor, nn.Parameter) else tensor.data.to(values.dtype)
        for tensor, values in zip(tensors, rest, strict=True)
    ]
    return found, after


def _train_shapes(model: nn.Module, inputs: tracer.Inputs) -> Any:
    """Shapes of a training pass, or the exception. Leaves fitting statistics, so that signals keep their
    size."""
    norms = _fitted(model)
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


def _fitted(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """The layers whose statistics a training pass fits."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    return [norm for norm in norms if norm.running_mean is not None]


def _foretold(model: nn.Module, inputs: tracer.Inputs) -> list[tuple[int, ...]] | None:
    """Shapes of a training pass without doing its arithmetic; None where they depend on values, or others on it."""
    # torch takes a recurrent layer apart, step by step, to foretell its shapes.
    if _fitted(model) or any(isinstance(m, nn.RNNBase) for m in model.modules()):
        return None
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
