"""New weights for the cut model: its architecture alone is kept. Liu et al., ICLR 2019, arXiv 1810.05270.

Every parameter is drawn as the base model's initialiser would draw it for the smaller shapes, batch statistics begin
empty, and nothing of the base model's weights is left. With training as long as the base model's this shows what the
cut architecture is worth without inherited weights ("Rethinking the Value of Network Pruning").

Runs once, behind the last cut, factorisation and masks; masked weights stay zero. The seed is the trial's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autoprune.errors import BadRecipe
from autoprune.initialisation import reinitialise
from autoprune.recovery._base import Recovery, RecoveryContext, RecoveryCost
from autoprune.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Reinitialise(Recovery):
    """Replace all weights of the cut model by new ones."""

    trains: ClassVar[bool] = False
    resets: ClassVar[bool] = True

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Raises BadRecipe when it is not known how the base model is built, BadInput for what cannot start anew."""
        if context.fresh is None:
            raise BadRecipe("reinitialise needs to know how the base model is built; it cannot run on its own")
        seed = derive_seed(context.seed, "reinitialise")
        reinitialise(model.to(context.device), context.fresh(seed), seed)
        model.eval()
        return RecoveryCost()
