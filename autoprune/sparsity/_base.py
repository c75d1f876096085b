"""The contract of the room `sparsity`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autoprune.fields import real
from autoprune.masks import Hold, Masks
from autoprune.rooms import Method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autoprune.data import Data
    from autoprune.tasks import Task
    from autoprune.training import Train


@dataclass(frozen=True, kw_only=True)
class SparsityContext:
    """What a sparsity method works with. What `train` spends is counted by whoever made the context."""

    data: Data
    task: Task
    seed: int
    device: torch.device
    train: Train


@dataclass(frozen=True, kw_only=True)
class Sparsified:
    """The masks of a model whose masked weights are zero. forward_samples: of scoring, backward passes included."""

    masks: Masks
    forward_samples: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sparsity(Method):
    """Decides which single weights of convolutions and linear layers become zero, at an exact share of them.

    `sparsify` runs once, after channels were cut and layers factorised. `hold` is the hook of all later training: by
    default masks stay as they are and nothing comes back.
    """

    room: ClassVar[str] = "sparsity"

    sparsity: float = real(
        0.9,
        valid=(0.0, 0.999),
        search=(0.5, 0.98),
        help="share of the weights of convolutions and linear layers that are zero in the end",
    )

    @abstractmethod
    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        """Choose the masks, zero what they mask, and leave the model in eval mode, on the context's device.

        The model may be trained by `context.train`. Raises BadRecipe when the model has nothing to mask or the
        hyperparameters contradict each other, LossNotFinite or OutOfMemory.
        """

    def hold(self, masks: Masks, seed: int) -> Hold:
        """Return the hook that a training of the sparse model takes."""
        return Hold(masks)
