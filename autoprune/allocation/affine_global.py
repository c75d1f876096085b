"""One ranking over the network after an affine correction per group. Chin et al., "LeGR", CVPR 2020, arXiv 1904.12368.

    corrected_C[c] = scale_g * score_C[c] + shift_g

C units of group g, the scores normalised by the recipe. All units are then ranked together and the lowest go first, as
in `global`. The paper learns scale and shift by evolution at one target and uses them at all others; here they are
searched like any hyperparameter. Unit of the shift: that of the scores, of mean 1 with `normalisation: mean`.
Departs from the paper: scores are those of any criterion, not squared weight norms alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import global_path
from autoprune.fields import hyperparameters, per_item


@dataclass(frozen=True, kw_only=True)
class AffineGlobal(Allocation):
    """Remove the units that score lowest in the whole network, each group's scores scaled and shifted."""

    scale: float | Mapping[str, float] = per_item(
        1.0,
        of="group",
        valid=(1e-3, 1e3),
        search=(0.25, 4.0),
        unmatched=1.0,
        log=True,
        help="factor of a group's scores",
    )
    shift: float | Mapping[str, float] = per_item(
        0.0, of="group", valid=(-1e3, 1e3), search=(-0.5, 0.5), unmatched=0.0, help="added to a group's scores"
    )

    def path(self, context: AllocationContext) -> Path:
        names = [g.name for g in context.structure.groups]
        declared = hyperparameters(self)
        scale = declared["scale"].resolve("affine_global.scale", self.scale, names)  # type: ignore[union-attr]
        shift = declared["shift"].resolve("affine_global.shift", self.shift, names)  # type: ignore[union-attr]
        corrected = {name: scale[name] * score + shift[name] for name, score in context.scores.items()}
        return global_path(context.structure, corrected)
