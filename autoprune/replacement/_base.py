"""The contract of the room `replacement`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from autoprune.rooms import Method

if TYPE_CHECKING:
    from torch import nn

    from autoprune.graph import Layer


class Replacement(Method):
    """A third state of a unit, between kept and removed: it stays, but what computes it becomes cheaper.

    Of the units that a cut affects, the part `share`, the highest scored, takes this form. A layer is exchanged for one
    that computes some of its output rows in the cheaper way; `rows` are their indices, ascending.

    A method with `whole` set takes no part in cuts: it exchanges whole layers at the end of a trial, all rows of each.
    """

    room: ClassVar[str] = "replacement"
    whole: ClassVar[bool] = False

    def layers(self, model: nn.Module) -> list[tuple[str, Replacement]]:
        """Return the layers of a finished model that a `whole` method exchanges, with what it exchanges each by."""
        return []

    @property
    @abstractmethod
    def share(self) -> float:
        """The part, 0 to 1, of the affected units that is replaced and not removed."""

    @abstractmethod
    def saved(self, layer: Layer) -> float:
        """Return the part of a row's FLOPs and weights that its cheaper form saves; 0 where it has none."""

    @abstractmethod
    def skeleton(self, module: nn.Module, rows: Sequence[int]) -> nn.Module:
        """Return the replaced layer of a module, weights not yet set, on its device and in its dtype.

        Raises NotApplicable for a module that has no cheaper form, ValueError for rows that it does not have.
        """

    @abstractmethod
    def replaced(self, module: nn.Module, rows: Sequence[int]) -> nn.Module:
        """Return the skeleton with the weights that it begins with; the module is untouched."""
