"""The copy of a model that is traced, and the state of torch in which it runs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.errors import TraceFailed
from autoprune.graph.failures import short

_WRAPPERS = {
    "DataParallel": "Give the model inside, model.module, and wrap the smaller one.",
    "DistributedDataParallel": "Give the model inside, model.module, and wrap the smaller one.",
    "FullyShardedDataParallel": "Cut the model before it is sharded.",
}


def prepared(model: nn.Module) -> nn.Module:
    """An own copy in eval mode. Raises TraceFailed for models that cannot be copied, run or cut."""
    for path, module in model.named_modules():
        _check_module(path, module)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _check_tensor(name, tensor)
    try:
        own = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:
        raise TraceFailed(
            f"the model cannot be copied: {short(error)} Copying is how autoprune never touches it."
        ) from error
    own.register_forward_hook(_plain_output)
    return own


def check_grown(own: nn.Module, model: nn.Module) -> None:
    """Raise TraceFailed if a forward pass of the copy made parameters that the model itself does not have."""
    theirs = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    made = [name for name, _ in own.named_parameters(remove_duplicate=False) if name not in theirs]
    if made:
        raise TraceFailed(
            f"{made[0]!r} is made in the forward pass, anew in every copy of the model. "
            f"Run the model once on an example input before tracing."
        )


def share(own: nn.Module, model: nn.Module) -> None:
    """Let parameters of a copy have their values in the model's memory, where they are equal still.

    Only for a copy that nothing writes into from now on: after a forward pass, which shows what is written.
    """
    theirs = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in own.named_parameters():
        other = theirs.get(name)
        if other is None or type(parameter) is not nn.Parameter or type(other) is not nn.Parameter:
            continue
        if parameter.device == other.device and torch.equal(parameter, other):
            parameter.data = other.data


def _check_module(path: str, module: nn.Module) -> None:
    place = f"module {path!r}" if path else "the model"
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise TraceFailed(f"{place} is TorchScript, which nobody can cut. Give the Python model that it was made from.")
    if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
        raise TraceFailed(f"{place} is a {kind.__name__}, a wrapper for several devices. {_WRAPPERS[kind.__name__]}")
    if kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
        raise TraceFailed(
            f"{place} is quantised ({kind.__name__}), its weights are packed. Prune the float model, then quantise it."
        )
    for name, held in module.__dict__.items():
        if isinstance(held, Tensor) and not held.is_leaf:
            # torch.nn.utils.weight_norm and prune keep the computed weight beside its parts.
            raise TraceFailed(
                f"{place} keeps the result of a computation, {name!r}, which cannot be copied. Make weight_norm or "
                f"prune permanent (remove_weight_norm, prune.remove), or detach the tensor."
            )


def _check_tensor(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise TraceFailed(
            f"{name!r} has no shape yet (a lazy module). Run the model once on an example input before tracing."
        )
    if tensor.is_meta:
        raise TraceFailed(f"{name!r} is on the meta device and has no values. Load real weights before tracing.")


def _plain_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Data classes as dicts: torch.export takes only containers that it knows."""

    def convert(item: Any) -> Any:
        if not dataclasses.is_dataclass(item) or isinstance(item, type):
            return item
        return {field.name: plain(getattr(item, field.name)) for field in dataclasses.fields(item)}

    def plain(item: Any) -> Any:
        return pytree.tree_map(convert, item)

    return plain(output)


@contextlib.contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """Without the fused path of nn.MultiheadAttention, which no export shows and no counter counts, and without
    compilation, which would start anew for each cut."""
    compiled = any("_orig_mod" in module._modules for module in model.modules())
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _uncompiled() if compiled else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # The counter of FLOPs is such a hook, and nothing is compiled here.
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
        yield


def devices(model: nn.Module) -> list[torch.device]:
    """The CUDA devices that the model lives on, whose random state has to be kept too."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
