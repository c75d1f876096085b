"""Dual-gradient iterative pruning. Saikumar and Varghese, "DRIVE", 2024, arXiv 2404.03687.

    score_w = magnitude * |w| / sum |w|  +  connection * |w g| / sum |w g|  +  convergence * |g| / sum |g|

over the weights that are still there; g is the mean over batches of dL/dw, a term whose sum is zero counts zero. Scores
have no unit. After `warmup_epochs` of dense training there are `rounds` of scoring anew; round r keeps the
round((1 - sparsity) ** (r / rounds) * m) largest of all m weights, at least one in every layer, and nothing that went
in an earlier round. All rounds look at the same batches. Then the ordinary training follows.

The paper's method section was not available: that three terms are added and that it is done in rounds after a few
epochs is the paper's abstract; their scaling, the densities of the rounds and the batches are our reading. The warm-up
has a learning-rate cycle of its own. The paper starts from random weights (recipe key `start`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from autoprune import masks
from autoprune.fields import choice, integer, real
from autoprune.masks import Hold, Masks, Scores
from autoprune.seeds import derive_seed
from autoprune.sparsity._base import Sparsified, SparsityContext
from autoprune.sparsity._gradients import mean_gradients
from autoprune.sparsity._patterns import PatternedSparsity


@dataclass(frozen=True, kw_only=True)
class Drive(PatternedSparsity):
    """Train a little, then remove weights in quick rounds by magnitude and two gradients."""

    warmup_epochs: float = real(5.0, valid=(0.0, 10000.0), search=(0.0, 20.0), help="dense epochs before the rounds")
    rounds: int = integer(10, valid=(1, 1000), search=(1, 50), log=True, help="of scoring and removing")
    batches: int = integer(10, valid=(1, 10000), search=(1, 50), log=True, help="batches of each round's gradient")
    batch_size: int = integer(128, valid=(2, 65536), search=(16, 512), log=True, help="samples in each of them")
    magnitude: float = real(1.0, valid=(0.0, 1.0), search=(0.0, 1.0), help="weight of |w|")
    connection: float = real(1.0, valid=(0.0, 1.0), search=(0.0, 1.0), help="weight of |w g|")
    convergence: float = real(1.0, valid=(0.0, 1.0), search=(0.0, 1.0), help="weight of |g|")
    rewind: Literal["none", "init"] = choice(
        "none",
        options=("none", "init"),
        help="weights that training goes on from: those now, or those before the warm-up",
    )

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        model.to(context.device)
        before = copy.deepcopy(model.state_dict()) if self.rewind == "init" else None
        found = masks.full(model)
        if self.warmup_epochs > 0:
            context.train(model, self.warmup_epochs, Hold(found), "warm-up")
        forward = 0
        seed = derive_seed(context.seed, "score")
        for r in range(1, self.rounds + 1):
            gradients, samples = mean_gradients(model, context, self.batches, self.batch_size, seed, "train")
            scores = self.scores(masks.prunable(model), gradients, found)
            found = self.select(scores, (1 - self.sparsity) ** (r / self.rounds), found)
            masks.zero(model, found)
            forward += samples
        if before is not None:
            model.load_state_dict(before)
            masks.zero(model, found)
        model.eval()
        return Sparsified(masks=found, forward_samples=forward, notes=self.dense_layers(found))

    def scores(self, weights: Scores, gradients: Scores, among: Masks) -> dict[str, Tensor]:
        """Return the score of every weight; of masked ones it is zero."""
        alive = {name: mask.double() for name, mask in among.items()}
        size = {name: w.detach().double().abs() * alive[name] for name, w in weights.items()}
        slope = {name: gradients[name].double().abs() * alive[name] for name in weights}
        both = {name: size[name] * slope[name] for name in weights}
        terms = ((self.magnitude, size), (self.connection, both), (self.convergence, slope))
        scales = [factor / (float(sum(t.sum() for t in term.values())) or 1.0) for factor, term in terms]
        return {
            name: sum((scale * term[name] for scale, (_, term) in zip(scales, terms, strict=True)), 0 * size[name])
            for name in weights
        }
