"""No layer beyond its redundancy. Zhou et al., "Hierarchical Pruning", 2022, arXiv 2206.03596.

K (C, C) holds the second moments of the loss gradients by the C filters of a group. What its spectrum lacks in rank,
up to the share `eps` of its sum, can go: the redundancy r, which caps the group
(`autoprune/evidence/filter_gradients.py`).
Within the caps units go by one ranking of their scores over the network. With the criterion `hierarchical_gradient` at
the same eps, and no normalisation, that is the paper's loop; any other criterion gets its caps.

All groups at their caps is the most that eps allows, R_max = sum r / sum C. With `raise_eps` a target beyond it is met
at the smallest eps that does, one for all groups; without, it cannot be reached, and the error says how far it went.
Groups whose gradients by sample are not known stay whole.
Departs from the paper, whose body could not be read: formulas realise its abstract; raising eps is the default, since a
recipe has to meet its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import global_path
from autoprune.errors import BadRecipe, NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.evidence.filter_gradients import needed_eps, redundancy, spectrum
from autoprune.fields import choice, real
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Redundancy(Allocation):
    """Remove the lowest scores of the network, from no group more than its gradients show to be redundant."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.FILTER_GRADIENTS})

    eps: float = real(0.01, valid=(0.0, 0.99), search=(1e-4, 0.2), log=True, help="gradient energy a layer may lose")
    raise_eps: bool = choice(
        True, options=(True, False), search=(True,), help="meet targets beyond what eps allows, by a larger eps"
    )

    def path(self, context: AllocationContext) -> Path:
        evidence = context.evidence_for(self.name)
        scored = [g for g in context.structure.groups if g.name in context.scores]
        spectra = {g.name: values for g in scored if (values := _spectrum(g, evidence)) is not None}
        if not spectra:
            raise BadRecipe("allocation 'redundancy': no group of this model has gradients by sample")
        caps = {name: redundancy(values, self.eps) for name, values in spectra.items()}
        ranked = global_path(context.structure, self._keys(context, spectra, caps))
        if self.raise_eps:
            return ranked
        least_G = np.array([g.size - caps.get(g.name, 0) for g in context.structure.groups], dtype=np.float64)

        def path(strength: float) -> NDArray[np.float64]:
            return np.maximum(ranked(strength), least_G)

        return path

    def _keys(self, context: AllocationContext, spectra: dict[str, Tensor], caps: dict[str, int]) -> dict[str, Tensor]:
        """Return for every unit when it goes: below 0 by score within the caps, then by the eps that it needs."""
        worst = max(float(context.scores[name].max()) for name in spectra)
        keys = {}
        for name, values in spectra.items():
            score = context.scores[name].detach().double().cpu()
            rank = torch.argsort(torch.argsort(score, stable=True), stable=True)
            beyond = torch.from_numpy(needed_eps(values))[rank]
            keys[name] = torch.where(rank < caps[name], score - worst - 1, beyond)
        return keys


def _spectrum(group: Group, evidence: ModelEvidence) -> Tensor | None:
    try:
        return spectrum(evidence.filter_gradients(group).cpu())
    except NotApplicable:
        return None
