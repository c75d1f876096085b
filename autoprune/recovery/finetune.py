"""Finetuning: the task's own loss on the training data, after the cut.

The learning rate starts anew each time; with `cosine` it falls to zero at the end of the epochs given
(Loshchilov and Hutter, ICLR 2017, arXiv 1608.03983). Retraining after one-shot filter pruning as in Li et
al., ICLR 2017, arXiv 1608.08710, who keep a constant rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.recovery._base import RecoveryContext, RecoveryCost
from autoprune.recovery._training import _Training


@dataclass(frozen=True, kw_only=True)
class Finetune(_Training):
    """Train the cut model on the task."""

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Raises LossNotFinite, OutOfMemory."""
        return RecoveryCost(trained_samples=self._train(model, context, epochs, context.task, None))
