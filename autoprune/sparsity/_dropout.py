"""Less dropout for sparser layers. Han et al., NeurIPS 2015, arXiv 1506.02626, equation 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from autoprune.masks import Masks


@contextmanager
def lowered_dropout(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Lower p of every dropout module to p * sqrt(kept / all) of the masked layer registered before it, for a while."""
    before = {module: module.p for module in model.modules() if isinstance(module, _DropoutNd)}
    density = 1.0
    try:
        for name, module in model.named_modules():
            mask = masks.get(f"{name}.weight")
            if mask is not None:
                density = float(mask.double().mean())
            if module in before:
                module.p = before[module] * sqrt(density)
        yield
    finally:
        for module, p in before.items():
            module.p = p
