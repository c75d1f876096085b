"""The contract of the room `allocation`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from autoprune.rooms import Method

if TYPE_CHECKING:
    from torch import Tensor

    from autoprune.graph import Structure

Path = Callable[[float], NDArray[np.float64]]
"""Strength (0 and up) to the kept units of every group, (G,), fractional, in the order of `structure.groups`.

Strength 0 keeps everything; more strength never keeps more. Strength s of a uniform allocation keeps 0.5 ** s of every
group; other paths are paced alike, so that channels and ranks can be repaired to a target by one common strength.
"""


class Allocation(Method):
    """Decides how much goes from each group, up to the one scalar that the repair finds."""

    room: ClassVar[str] = "allocation"

    @abstractmethod
    def path(self, scores: Mapping[str, Tensor], structure: Structure) -> Path:
        """Return the path for these normalised scores. Groups without scores stay whole."""
