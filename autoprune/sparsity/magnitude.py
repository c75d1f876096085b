"""Weights of small magnitude go, once. Han et al., NeurIPS 2015, arXiv 1506.02626, with one threshold for all layers.

    score_w = |w|,    the round((1 - sparsity) * m) largest of all m stay;    scope layer: of every layer by itself

Unit: that of the weight. The baseline of unstructured methods: neither rounds nor thresholds of layers, for which see
`han_2015`. With a pattern the largest of every m neighbours stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from autoprune import masks
from autoprune.fields import choice
from autoprune.sparsity._base import Sparsified, SparsityContext
from autoprune.sparsity._patterns import PatternedSparsity


@dataclass(frozen=True, kw_only=True)
class Magnitude(PatternedSparsity):
    """Keep the weights of largest magnitude, without training."""

    scope: Literal["global", "layer"] = choice(
        "global", options=("global", "layer"), help="one ranking of all weights, or the same share of every layer"
    )

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        model.to(context.device).eval()
        scores = {name: weight.detach().abs() for name, weight in masks.prunable(model).items()}
        found = self.select(scores, 1 - self.sparsity, scope=self.scope)
        masks.zero(model, found)
        return Sparsified(masks=found, notes=self.dense_layers(scores))
