"""Learning weights and connections. Han, Pool, Tran and Dally, NeurIPS 2015, arXiv 1506.02626.

    a weight goes when |w| <= c * q * sigma of its layer,    sigma = root mean square of w - mean(w) over the layer

q is a quality parameter by kind of layer, sigma is taken once at the start (or anew over the weights that are left).
There are `rounds` of removing and retraining from the surviving values, for `epochs_between` by the recipe's training,
each with a fresh optimiser; what goes stays away. The common factor c makes the last round meet `sparsity` exactly: the
threshold rises linearly over the rounds, so round i is to leave as many weights as lie above i / rounds of the last
threshold in the model at the start. Every layer keeps at least one weight. No unit: |w| / (q * sigma).

The starting model is the trained one of the paper's first step. The paper publishes no q and sets one by hand for each
layer; the defaults are the order of magnitude of a re-implementation's AlexNet. A tenth of the training's learning rate
is the paper's for retraining: set it as the recovery's `lr`. While it retrains here, dropout behind a layer is lowered
to p * sqrt(weights left / weights). Units left without a connection are not removed: they cost nothing in a sparse
kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.fields import choice, integer, real
from autoprune.masks import Hold
from autoprune.sparsity._base import Sparsified, SparsityContext
from autoprune.sparsity._dropout import lowered_dropout
from autoprune.sparsity._patterns import PatternedSparsity


@dataclass(frozen=True, kw_only=True)
class Han2015(PatternedSparsity):
    """Remove small weights by thresholds of layers, retrain the others, and again."""

    rounds: int = integer(5, valid=(1, 1000), search=(1, 20), log=True, help="of removing and retraining")
    epochs_between: float = real(10.0, valid=(0.0, 10000.0), search=(0.1, 10.0), log=True, help="epochs after a round")
    spread: Literal["initial", "alive"] = choice(
        "initial", options=("initial", "alive"), help="sigma of the layer at the start, or of what is left of it"
    )
    q_first_conv: float = real(0.25, valid=(0.01, 10.0), search=(0.1, 2.5), help="q of the first convolution")
    q_conv: float = real(0.45, valid=(0.01, 10.0), search=(0.1, 2.5), help="q of the other convolutions")
    q_linear: float = real(0.875, valid=(0.01, 10.0), search=(0.1, 2.5), help="q of linear layers")
    q_last_linear: float = real(0.625, valid=(0.01, 10.0), search=(0.1, 2.5), help="q of the last linear layer")

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        model.to(context.device).eval()
        found, quality = masks.full(model), self.qualities(model)
        weights = masks.prunable(model)
        sigma = {name: spread(weight.detach()) for name, weight in weights.items()}
        counts = self.counts(distances(weights, sigma, quality))
        for i, kept in enumerate(counts):
            if self.spread == "alive":
                sigma = {name: spread(weight.detach()[found[name]]) for name, weight in weights.items()}
            scores = distances(weights, sigma, quality)
            found = self.select(scores, kept / masks.size(scores), found)
            masks.zero(model, found)
            if i + 1 < len(counts) and self.epochs_between > 0:
                with lowered_dropout(model, found):
                    context.train(model, self.epochs_between, Hold(found), "round", i)
        return Sparsified(masks=found, notes=self.dense_layers(found))

    def qualities(self, model: nn.Module) -> dict[str, float]:
        """Return q by weight name."""
        names = list(masks.prunable(model))
        linear = [n for n in names if isinstance(model.get_submodule(n.rpartition(".")[0]), nn.Linear)]
        convs = [n for n in names if n not in linear]
        found = dict.fromkeys(convs, self.q_conv) | dict.fromkeys(linear, self.q_linear)
        found |= dict.fromkeys(convs[:1], self.q_first_conv) | dict.fromkeys(linear[-1:], self.q_last_linear)
        return {name: found[name] for name in names}

    def counts(self, scores: masks.Scores) -> list[int]:
        """Return how many weights each round leaves: those above its share of the last round's threshold."""
        total = masks.size(scores)
        last = masks.kept_of(total, self.sparsity)
        ordered = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True).values
        threshold = float(ordered[max(last, 1) - 1])
        above = [
            sum(int((score > threshold * i / self.rounds).sum()) for score in scores.values())
            for i in range(1, self.rounds)
        ]
        return [*(max(last, count) for count in above), last]


def spread(weight: Tensor) -> float:
    """Return the standard deviation of all entries, divided by their number; 1 where they are all equal."""
    return math.sqrt(float(weight.double().var(correction=0))) or 1.0


def distances(weights: masks.Scores, sigma: dict[str, float], quality: dict[str, float]) -> dict[str, Tensor]:
    """Return |w| / (q * sigma) of every weight."""
    return {n: w.detach().abs().double() / (quality[n] * sigma[n]) for n, w in weights.items()}
