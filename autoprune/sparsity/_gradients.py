"""Gradients of the task's loss in all weights that can be masked, for methods that score by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from autoprune.masks import prunable
from autoprune.sparsity._base import SparsityContext
from autoprune.tasks import eval_mode, forward

NormMode = Literal["train", "eval"]


def mean_gradients(
    model: nn.Module, context: SparsityContext, batches: int, batch_size: int, seed: int, norms: NormMode
) -> tuple[dict[str, Tensor], int]:
    """Return the signed mean over batches of dL/dw by weight name, and how many samples that took.

    Batches are of training samples without augmentation, whole ones only unless there is less than one. L is the task's
    loss alone, in single precision; dropout is off. Batch norms take statistics of the batch (train) or their running
    ones (eval), which are afterwards as they were.
    """
    model.to(context.device)
    split = context.data.train
    whole = len(split) // batch_size * batch_size
    limit = min(batches * batch_size, whole or len(split))
    weights = prunable(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    done = 0
    with _scoring(model, norms):
        for inputs, targets in split.batches(batch_size, seed=seed, limit=limit, device=context.device):
            loss = context.task.loss(forward(model, inputs), targets)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, found, strict=True):
                total[name] += 0 if gradient is None else gradient
            done += 1
    return {name: value / done for name, value in total.items()}, limit


@contextmanager
def _scoring(model: nn.Module, norms: NormMode) -> Iterator[None]:
    kept = {name: value.clone() for name, value in model.named_buffers()}
    with eval_mode(model):
        for module in model.modules():
            # instance norms too are _NormBase; group and layer norms have no modes
            if isinstance(module, _NormBase):
                module.train(norms == "train")
        try:
            yield
        finally:
            for name, value in model.named_buffers():
                value.copy_(kept[name])
