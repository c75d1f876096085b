"""Where the weights that stay may lie: anywhere, or n of every m neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from autoprune import masks
from autoprune.errors import BadRecipe
from autoprune.fields import choice
from autoprune.masks import Masks, Scores
from autoprune.sparsity._base import Sparsity

ANYWHERE = "none"
_PATTERNS = {"2_of_4": (2, 4), "1_of_4": (1, 4), "4_of_8": (4, 8)}


@dataclass(frozen=True, kw_only=True)
class PatternedSparsity(Sparsity):
    """A method that chooses by a score of every weight, so that it can keep to a pattern.

    A pattern says itself how sparse a layer becomes, so `sparsity` has to agree with it. Layers whose inputs are no
    multiple of m stay dense. In a method of several rounds the first ones keep more of the m.
    """

    pattern: str = choice(
        ANYWHERE,
        options=(ANYWHERE, *_PATTERNS),
        search=(ANYWHERE,),
        help="n of every m neighbouring inputs of an output stay, as sparse tensor cores want them; none: anywhere",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern == ANYWHERE:
            return
        n, m = _PATTERNS[self.pattern]
        if self.sparsity != 1 - n / m:
            raise BadRecipe(
                f"{type(self).__name__}: pattern {self.pattern} makes a sparsity of {1 - n / m:g}, got sparsity "
                f"{self.sparsity:g}; set sparsity to {1 - n / m:g}, or pattern to {ANYWHERE}"
            )

    def select(
        self,
        scores: Scores,
        density: float,
        among: Mapping[str, Tensor] | None = None,
        scope: Literal["global", "layer"] = "global",
    ) -> Masks:
        """Return masks that keep this share of all weights, or of each layer's, the largest scores of those in `among`.

        With a pattern, n of every m, or more of them while `density` is above that of the pattern.
        """
        if self.pattern != ANYWHERE:
            return self._of_pattern(scores, density, among or {})
        if scope == "global":
            return masks.keep_largest(scores, masks.kept_of(masks.size(scores), 1 - density), among)
        return {
            name: masks.keep_largest_in(
                score, max(1, masks.kept_of(score.numel(), 1 - density)), (among or {}).get(name)
            )
            for name, score in scores.items()
        }

    def _of_pattern(self, scores: Scores, density: float, among: Mapping[str, Tensor]) -> Masks:
        n, m = _PATTERNS[self.pattern]
        kept = max(n, ceil(round(density * m, 9)))
        return {
            name: masks.keep_n_of_m(score, kept, m, among.get(name))
            if fits(score, m)
            else torch.ones_like(score, dtype=torch.bool)
            for name, score in scores.items()
        }

    def dense_layers(self, scores: Scores) -> tuple[str, ...]:
        """Return a note that names the layers which the pattern does not fit."""
        if self.pattern == ANYWHERE:
            return ()
        m = _PATTERNS[self.pattern][1]
        left = [name for name, score in scores.items() if not fits(score, m)]
        if len(left) == len(scores):
            raise BadRecipe(f"pattern {self.pattern} fits no layer: none has a multiple of {m} inputs")
        return (f"pattern {self.pattern} leaves {', '.join(left)} dense: inputs no multiple of {m}",) if left else ()


def fits(weight: Tensor, m: int) -> bool:
    """Tell whether the inputs of a weight (O, I, ...) divide into groups of m."""
    return weight.ndim > 1 and weight.shape[1] % m == 0
