"""Connection sensitivity. Lee, Ajanthan and Torr, "SNIP", ICLR 2019, arXiv 1810.02340.

    score_w = |g_w| / sum of all |g|,    g_w = w * mean over batches of dL/dw

g_w is the gradient in a gate of one on the weight. Scores have no unit and sum to one. The round((1 - sparsity) * m)
largest of all m weights stay, at least one in every layer; scope `layer` ranks inside every layer instead. Batches are
of the training split, without augmentation and weight decay; one batch is the paper.

The paper scores random weights and trains those (recipe key `start`); its code trains other random weights under the
mask and scores with norms at their untrained running statistics (`norms: eval`). Biases and norms are never scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from autoprune import masks
from autoprune.fields import choice, integer
from autoprune.seeds import derive_seed
from autoprune.sparsity._base import Sparsified, SparsityContext
from autoprune.sparsity._gradients import mean_gradients
from autoprune.sparsity._patterns import PatternedSparsity


@dataclass(frozen=True, kw_only=True)
class Snip(PatternedSparsity):
    """Keep the weights whose removal would change the loss most, by one look at it."""

    batches: int = integer(1, valid=(1, 10000), search=(1, 50), log=True, help="batches, their gradients averaged")
    batch_size: int = integer(128, valid=(2, 65536), search=(16, 512), log=True, help="samples in each of them")
    norms: Literal["train", "eval"] = choice(
        "train", options=("train", "eval"), search=("train",), help="statistics of batch norms while scoring"
    )
    scope: Literal["global", "layer"] = choice(
        "global", options=("global", "layer"), help="one ranking of all weights, or one of every layer"
    )

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        seed = derive_seed(context.seed, "score")
        gradients, samples = mean_gradients(model, context, self.batches, self.batch_size, seed, self.norms)
        raw = {name: (w.detach() * gradients[name]).abs() for name, w in masks.prunable(model).items()}
        whole = float(sum(score.double().sum() for score in raw.values()))
        scores = {name: score.double() / (whole or 1.0) for name, score in raw.items()}
        found = self.select(scores, 1 - self.sparsity, scope=self.scope)
        masks.zero(model, found)
        model.eval()
        return Sparsified(masks=found, forward_samples=samples, notes=self.dense_layers(scores))
