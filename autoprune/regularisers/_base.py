"""The contract of the room `regularisers`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from autoprune.rooms import Method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autoprune.data import Data
    from autoprune.graph import Structure
    from autoprune.tasks import Task


class Choose(Protocol):
    """Says which units a cut would keep by the recipe's own criterion, allocation and target."""

    def __call__(
        self, model: nn.Module, alive: Mapping[str, list[int]] | None = None, progress: float = 1.0
    ) -> Mapping[str, list[int]]:
        """Return the units kept of the model as it is now, by group; groups that stay whole are absent.

        alive: units by group that are left to choose from, the others being zero; by default all.
        progress: part, above 0 to 1, of the way from the cost before the training to that of the next cut.
        """


@dataclass(frozen=True, kw_only=True)
class RegulariserContext:
    """What a regulariser works with. `structure` is that of the model as it is before the next cut.

    choose: for methods that have to know which units will go.
    first: nothing was cut yet.
    """

    structure: Structure
    choose: Choose
    data: Data
    task: Task
    seed: int
    device: torch.device
    mixed_precision: bool = False
    first: bool = True


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """What a regulariser did. as_chosen: the cut has to take what `choose` named last, not what scores say now."""

    trained_samples: int
    as_chosen: bool = False
    forward_samples: int = 0
    notes: tuple[str, ...] = ()


class Regulariser(Method):
    """Trains the model before each cut, with an objective that prepares it for the cut.

    It runs before the model is scored, so that scores are those of the shaped model. With several cuts it runs before
    each of them.
    """

    room: ClassVar[str] = "regularisers"

    @property
    def certified_at(self) -> float | None:
        """The epsilon at which what it trains is to be certified, None for a method that is not about that."""
        return None

    @abstractmethod
    def shape(self, model: nn.Module, context: RegulariserContext) -> Shaped:
        """Train the model in place and leave it in eval mode, on the context's device.

        Raises BadRecipe when the model has nothing that it could act on, LossNotFinite or OutOfMemory.
        """
