"""The contract of the room `recovery`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autoprune.rooms import Method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autoprune.data import Data
    from autoprune.evidence import ModelEvidence
    from autoprune.graph import Selection, Structure
    from autoprune.tasks import Task
    from autoprune.training import StepHook


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The cut that a model comes from: what was known of the model before it, and what was kept."""

    structure: Structure
    evidence: ModelEvidence
    selection: Selection


@dataclass(frozen=True, kw_only=True)
class RecoveryContext:
    """What a recovery method works with. `teacher` is the base model in eval mode; it must not be changed.

    `cut` is there for methods that say `follows_cut`. `hook` takes part in every step of those that train. `fresh`
    makes a model of the base model's architecture with new weights by seed.
    """

    data: Data
    task: Task
    teacher: nn.Module
    seed: int
    device: torch.device
    mixed_precision: bool = False
    cut: Cut | None = None
    hook: StepHook | None = None
    fresh: Callable[[int], nn.Module] | None = None


@dataclass(frozen=True, kw_only=True)
class RecoveryCost:
    """Samples that went forward and backward through the cut model, and forward only (teacher included)."""

    trained_samples: int = 0
    forward_samples: int = 0

    def __add__(self, other: RecoveryCost) -> RecoveryCost:
        return RecoveryCost(
            trained_samples=self.trained_samples + other.trained_samples,
            forward_samples=self.forward_samples + other.forward_samples,
        )


class Recovery(Method):
    """Wins back accuracy after a cut.

    Methods with `trains` set get the epochs of a rung. The others run once after every cut: first, before layers are
    factorised, those that say `follows_cut`, which correct the cut layers one by one; then the rest. Those with
    `resets` run once, behind all that decides on the architecture, masks included: they leave nothing of the weights.
    `like_base` says that a training is to repeat the base model's: a study that trained that puts its settings in.
    """

    room: ClassVar[str] = "recovery"
    trains: ClassVar[bool]
    follows_cut: ClassVar[bool] = False
    resets: ClassVar[bool] = False
    like_base: ClassVar[bool] = False

    @property
    def certified_at(self) -> float | None:
        """The epsilon at which what it trains is to be certified, None for a method that is not about that."""
        return None

    @abstractmethod
    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Change the model in place and leave it in eval mode, on the context's device.

        epochs: fractions allowed; 0 unless `trains`.
        Raises LossNotFinite or OutOfMemory.
        """
