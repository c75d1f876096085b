"""The contract of the room `schedules`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from autoprune.rooms import Method


@dataclass(frozen=True, kw_only=True)
class Step:
    """One cut: cut until `progress` (0 to 1) of the way to the target is done, then train for `epochs`.

    samples: trained on besides the epochs. momentum: share that the scores of the cut before have in those of this one.
    """

    progress: float
    epochs: float
    samples: int = 0
    momentum: float = 0.0


class Schedule(Method):
    """Decides by which step how much is cut."""

    room: ClassVar[str] = "schedules"

    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """Return the steps in order; progress rises strictly and ends at 1."""
