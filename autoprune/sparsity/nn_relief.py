"""Importance of a connection by its share of the neuron's signal. Dekhovich et al., "Neural network relief", Machine
Learning 113, 2024, arXiv 2109.10795.

    linear      c_ji = mean over samples of |w_ji x_i|
    convolution c_ji = mean over samples of || |K_ji| * |x_i| ||_F     (one input channel; norm over output positions)
    bias        c_jb = |b_j|, times sqrt(output positions) for a convolution
    score_ji = c_ji / sum over i and the bias of c_j

A neuron or filter j keeps its largest scores, the fewest whose sum is at least alpha, and what ties with the last of
them. Scores have no unit and sum to one for every j. Kernels K_ji go whole; a bias that is not kept becomes zero too.
All activations are those of the network at the start of a round, in eval mode, on the same `samples` training inputs.

alpha_conv and alpha_linear say how much signal stays; one factor on 1 - alpha of both is found by bisection so that
each of the `rounds` leaves at most (1 - sparsity) ** (i / rounds) of the weights: kernels are whole, so the result is
at or a little above the sparsity. Between rounds the recipe's training runs for `epochs_between`.

Departs from the paper: it stops by accuracy, not at a sparsity. Only connections are removed: its rules for residual
sums, for silent units' norms and its backward sweep remove whole channels, which is what criteria are for. Depthwise
and transposed convolutions stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.fields import integer, real
from autoprune.masks import Hold, Masks
from autoprune.seeds import derive_seed
from autoprune.sparsity._base import Sparsified, Sparsity, SparsityContext
from autoprune.sparsity._contributions import bias_of, contributions, scored_layers

_BISECTIONS = 40
_ENOUGH = 1e-6
_TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class NnRelief(Sparsity):
    """Keep, for every neuron, the connections that carry most of its signal."""

    alpha_conv: float = real(
        0.95, valid=(0.0, 0.9999), search=(0.7, 0.999), help="share of signal kept in convolutions"
    )
    alpha_linear: float = real(
        0.95, valid=(0.0, 0.9999), search=(0.7, 0.999), help="share of signal kept in linear layers"
    )
    rounds: int = integer(5, valid=(1, 1000), search=(1, 20), log=True, help="of removing and retraining")
    epochs_between: float = real(10.0, valid=(0.0, 10000.0), search=(0.1, 10.0), log=True, help="epochs after a round")
    samples: int = integer(
        1000, valid=(1, 10**7), search=(100, 5000), log=True, help="inputs that signals are taken on"
    )

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        model.to(context.device).eval()
        found = masks.full(model)
        layers = scored_layers(model)
        biases = {bias_of(name): layer.bias for name, layer in layers.items() if layer.bias is not None}
        found |= {name: torch.ones_like(bias, dtype=torch.bool) for name, bias in biases.items()}
        forward = 0
        for i in range(1, self.rounds + 1):
            signals, seen = contributions(model, layers, context, self.samples, derive_seed(context.seed, "signals"))
            found = self._within(signals, layers, found, (1 - self.sparsity) ** (i / self.rounds))
            masks.zero(model, found)
            forward += seen
            if i < self.rounds and self.epochs_between > 0:
                context.train(model, self.epochs_between, Hold(found), "round", i)
        return Sparsified(masks=found, forward_samples=forward, notes=self._notes(model, found, layers))

    def _within(self, signals: Mapping[str, Tensor], layers: Mapping[str, Any], before: Masks, density: float) -> Masks:
        """Return the masks for the smallest factor on 1 - alpha that leaves no more than this share of the weights."""
        weights = [name for name in before if name not in set(map(bias_of, layers))]
        wanted = masks.kept_of(sum(before[name].numel() for name in weights), 1 - density)

        def at(factor: float) -> Masks:
            found = dict(before)
            for name, layer in layers.items():
                alpha = self.alpha_linear if isinstance(layer, nn.Linear) else self.alpha_conv
                kept_JI = kept_connections(signals[name], 1 - min(1.0, factor * (1 - alpha)))
                found |= _masked(name, kept_JI, signals[name], before)
            return found

        def meets(found: Masks) -> bool:
            return masks.count({name: found[name] for name in weights}) <= wanted

        low, high = 0.0, 1 / (1 - max(self.alpha_conv, self.alpha_linear))
        if meets(at(low)):
            return at(low)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if meets(at(middle)) else (middle, high)
        return at(high)

    def _notes(self, model: nn.Module, found: Masks, layers: Mapping[str, Any]) -> tuple[str, ...]:
        dense = [n for n in masks.prunable(model) if n not in layers]
        notes = [f"nn_relief leaves {', '.join(dense)} dense: depthwise or transposed convolutions"] if dense else []
        weights = {name: found[name] for name in masks.prunable(model)}
        share = 1 - masks.count(weights) / masks.size(weights)
        if share < self.sparsity - 1e-3:
            notes.append(f"nn_relief reached a sparsity of {share:.4f}: every neuron keeps at least one connection")
        return tuple(notes)


def kept_connections(signals_JI: Tensor, alpha: float) -> Tensor:
    """Return (J, I) which contributions (J, I) each neuron keeps; those without a signal never."""
    whole_J1 = signals_JI.sum(dim=1, keepdim=True)
    scores_JI = signals_JI / whole_J1.clamp_min(torch.finfo(signals_JI.dtype).tiny)
    ordered_JI = scores_JI.sort(dim=1, descending=True).values
    short_JI = ordered_JI.cumsum(dim=1) < alpha - _ENOUGH
    last_J1 = short_JI.sum(dim=1, keepdim=True).clamp_max(signals_JI.shape[1] - 1)
    least_J1 = ordered_JI.gather(1, last_J1)
    return (scores_JI >= least_J1 * (1 - _TIE)) & (scores_JI > 0)


def _masked(weight: str, kept_JI: Tensor, signals_JI: Tensor, before: Masks) -> Masks:
    """Return the masks of a layer; one in which only biases are left keeps its largest connection."""
    inputs = before[weight].shape[1]
    if not bool(kept_JI[:, :inputs].any()):
        kept_JI = kept_JI.clone()
        kept_JI[:, :inputs] = masks.keep_largest_in(signals_JI[:, :inputs], 1)
    kernels = kept_JI[:, :inputs].reshape(*before[weight].shape[:2], *[1] * (before[weight].ndim - 2))
    found = {weight: before[weight] & kernels}
    if bias_of(weight) in before:
        found[bias_of(weight)] = before[bias_of(weight)] & kept_JI[:, inputs]
    return found
