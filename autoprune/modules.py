"""Finding and exchanging modules inside a model."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoprune.errors import unknown_name


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` (a module path) stands, in place.

    A module that several parents share is replaced in all of them, as they would otherwise stop sharing it.
    Raises UnknownName when there is no such module, ValueError for the model itself.
    """
    if not name:
        raise ValueError("the path '' is the model itself, which cannot be replaced inside itself")
    known = dict(model.named_modules(remove_duplicate=False))
    if name not in known:
        raise unknown_name("module", name, filter(None, known))
    old = known[name]
    places = [(p, key) for p in model.modules() for key, child in p._modules.items() if child is old]
    for parent, key in places:
        setattr(parent, key, module)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside its data parallel wrapper, if it has one: names are those of the model."""
    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inner
