"""The contract of the room `depth`, and how much depth goes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from autoprune.fields import choice, integer, real
from autoprune.rooms import Method

if TYPE_CHECKING:
    from torch import Tensor

    from autoprune.evidence import ModelEvidence
    from autoprune.graph import Block


@dataclass(frozen=True, kw_only=True)
class DepthCriterion(Method):
    """Scores residual blocks: the higher, the more worth keeping. Depth goes before channels and ranks.

    Blocks go in the order of their scores while they take no more than `share` of what the target removes; channels
    and ranks take the rest. Alone, as few go as meet the target.
    """

    room: ClassVar[str] = "depth"

    share: float = real(
        0.5,
        valid=(0.0, 1.0),
        search=(0.0, 1.0),
        help="most of the cost to remove that blocks take, where channels or ranks take the rest",
    )
    count: int = integer(
        0, valid=(0, 100_000), search=(0, 0), help="skip exactly this many blocks; 0: as many as the target asks for"
    )
    allow_first: bool = choice(
        False, options=(False, True), help="whether the first unit of a stage may go, where it can be skipped"
    )
    iterative: bool = choice(
        False, options=(False, True), search=(False,), help="score anew after every block, on the model without it"
    )
    unreachable: Literal["refuse", "nearest"] = choice(
        "refuse",
        options=("refuse", "nearest"),
        search=("refuse",),
        help="where all blocks together do not meet the target alone: fail, or skip them all and say so",
    )

    @abstractmethod
    def score(self, blocks: Sequence[Block], evidence: ModelEvidence) -> Tensor:
        """Return (B,) float64 scores of these blocks of the model that the evidence is about."""

    def may_go(self, scores: Tensor) -> Tensor:
        """Return (B,) which blocks may go by their scores: all, unless the method has a threshold."""
        return scores.isfinite()
