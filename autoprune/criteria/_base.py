"""The contract of the room `criteria`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from autoprune.rooms import Method

if TYPE_CHECKING:
    from torch import Tensor

    from autoprune.evidence import ModelEvidence
    from autoprune.graph import Group


class Criterion(Method):
    """Scores the units of a group: the higher, the more worth keeping."""

    room: ClassVar[str] = "criteria"

    @abstractmethod
    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        """Return (C,) float64 scores, finite, one per unit of the group.

        Raises NotApplicable when the method makes no sense for this group; the group then stays whole.
        """
