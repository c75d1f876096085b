"""The constant that a removed unit still sends on, folded into what reads it. Data-free.

Liu et al. 2017, "Network Slimming", arXiv 1708.06519: a channel with scale 0 emits f(shift) everywhere; the reference
implementation drops it. Oh et al., WACV 2022, arXiv 2112.01155: what batch norm says that a channel emits.

    z_c ~ N(b_c, g_c ** 2)  by the norms in front of the reader, as for the criterion `bn_distribution`
    constant_c = E f(z_c)  (expected)   or   f(b_c)  (shift),   f the activation that follows
    bias_n += sum over removed c of constant_c * sum_k weight[n, c, k]

k runs over the kernel. A reader without a bias takes it off the running mean of the batch norm right behind it. Exact
where g_c is 0, but for borders that are padded with zeros; else `expected` keeps the mean of every output. Shapes:
constant (C,), weight (N, C, K); unit: that of the reader's outputs. `bn_reestimation` does the same from data for
readers with a norm behind them, so that this is for recipes without data, and for readers with a bias.

No layer gains a bias: a reader without one, and without a norm behind it, stays as it is. So do readers of units that
have no norm in front or an activation without a formula, grouped and transposed ones, and those called on different
things. Neither paper has this step as a formula of its own; it is the consequence of theirs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoprune.errors import BadRecipe
from autoprune.evidence import Evidence
from autoprune.evidence.gaussian import moments, normed_sum
from autoprune.evidence.readings import OTHER, Reading
from autoprune.fields import choice
from autoprune.graph import Group, Place
from autoprune.norms import norms_behind
from autoprune.recovery._base import Cut, Recovery, RecoveryContext, RecoveryCost


@dataclass(frozen=True, kw_only=True)
class FoldShift(Recovery):
    """Give the next layer's bias, or the mean of the norm behind it, the constant that removed units sent on."""

    trains: ClassVar[bool] = False
    follows_cut: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({Evidence.WEIGHTS, Evidence.READINGS})

    constant: str = choice(
        "expected", options=("expected", "shift"), help="mean of what the unit emits, or what it emits at its shift"
    )

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Raises BadRecipe when it is used without a cut."""
        if context.cut is None:
            raise BadRecipe("fold_shift corrects a model that was just cut; it cannot run on its own")
        inputs = context.data.train.one_sample(context.device)
        behind = norms_behind(model.to(context.device), inputs)
        for group in context.cut.structure.groups:
            found = [r for r in context.cut.evidence.readings(group) if r.activation != OTHER]
            calls = Counter(p.tensor for r in context.cut.evidence.readings(group) for p in r.readers)
            for reading in found:
                constant_CM = self._constant(group, reading, context.cut)
                for place in reading.readers:
                    if calls[place.tensor] == 1:
                        _fold(model, place, constant_CM, context.cut, behind)
        model.eval()
        return RecoveryCost(forward_samples=1)

    def _constant(self, group: Group, reading: Reading, cut: Cut) -> Tensor:
        b_CM, g_CM = normed_sum(group, cut.evidence, reading)
        spread_CM = g_CM if self.constant == "expected" else torch.zeros_like(g_CM)
        return moments(reading.activation, b_CM.flatten(), spread_CM.flatten(), reading.slope).mean.view_as(b_CM)


def _fold(model: nn.Module, place: Place, constant_CM: Tensor, cut: Cut, behind: dict[str, str]) -> None:
    module, kept = model.get_submodule(place.module), cut.selection.kept.get(place.tensor, {})
    if place.axis not in kept or not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return
    if getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False):
        return
    if place.indices.shape[1] % constant_CM.shape[1]:
        return
    before = cut.evidence.weight(place.tensor).double()
    kept_NI = before[kept[0]] if 0 in kept else before
    weight_NI = kept_NI.flatten(2).sum(dim=2) if kept_NI.dim() > 2 else kept_NI
    indices_CJ = torch.tensor(place.indices, device=before.device)
    gone_CJ = ~torch.isin(indices_CJ, torch.tensor(kept[place.axis], device=before.device))
    # the inputs of a unit are its channels in order, each with all of its positions where maps were flattened
    each_CJ = constant_CM.repeat_interleave(indices_CJ.shape[1] // constant_CM.shape[1], dim=1).to(before.device)
    shift_N = weight_NI[:, indices_CJ[gone_CJ]] @ each_CJ[gone_CJ]
    with torch.no_grad():
        if module.bias is not None:
            module.bias.add_(shift_N.to(module.bias))
        elif place.module in behind:
            mean = model.get_buffer(f"{behind[place.module]}.running_mean")
            mean.sub_(shift_N.to(mean))
