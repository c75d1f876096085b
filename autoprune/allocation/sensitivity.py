"""Amounts from sensitivity curves. Li et al., ICLR 2017, arXiv 1608.08710, section 3.2.

Every group alone loses the shares p = 0.1, ..., 0.9 by the recipe's criterion, without training, and accuracy is
measured. The paper sets by eye one p for the layers of a stage and the layers to skip; here

    p of a group    the largest tested p whose accuracy is at most `tolerance` below the uncut model's, 0 if none
    p of a stage    the median of its groups'; a group whose own is less than half of it is skipped

A stage holds the groups of one feature-map size. The path keeps size * (1 - p) ** t, so that any target is met with the
rule's proportions; skipped groups are cut only when the others have nothing left. A group keeps
max(1, int(size * (1 - p))). Unit of the tolerance: accuracy, 0 to 1.
Departs from the paper: accuracy is that of training samples, so that the validation split stays untouched, and what the
recipe does after a cut without training (closed-form correction, say) is done before it is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import lenient_path
from autoprune.allocation._sensitivities import Sensitivities, keep_fractions, measure_groups
from autoprune.evidence import Evidence
from autoprune.fields import integer, real

_TESTED = 9


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Allocation):
    """Remove from each stage what its layers bear, and nothing from layers that bear less than half of that."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.GROUP_SENSITIVITIES})

    tolerance: float = real(
        0.02, valid=(0.0, 1.0), search=(0.005, 0.05), log=True, help="accuracy that cutting one group may cost"
    )
    samples: int = integer(
        512, valid=(2, 10_000_000), search=(256, 2048), log=True, help="training samples of each measurement"
    )

    def measured_samples(self, groups: int) -> int:
        return self.samples * (1 + _TESTED * groups)

    def path(self, context: AllocationContext) -> Path:
        found = measure_groups(context, context.measure_for(self.name), keep_fractions(_TESTED), self.samples)
        removed = shares(found, context.structure.stages, self.tolerance)
        return lenient_path(context.structure, {name: 1 - p for name, p in removed.items()})


def shares(found: Sensitivities, stages: Mapping[str, str], tolerance: float) -> dict[str, float]:
    """Return the removed share of every group by the rule above. stages: by group."""
    own = {name: _bearable(found, name, tolerance) for name in found.curves}
    by_stage: dict[str, list[float]] = {}
    for name, share in own.items():
        by_stage.setdefault(stages[name], []).append(share)
    median = {stage: statistics.median(values) for stage, values in by_stage.items()}
    return {n: 0.0 if p < median[stages[n]] / 2 else median[stages[n]] for n, p in own.items()}


def _bearable(found: Sensitivities, name: str, tolerance: float) -> float:
    curve = found.curves[name]
    passing = [
        1 - fraction
        for fraction, accuracy in zip(curve.fractions, curve.accuracies.tolist(), strict=True)
        if accuracy >= found.accuracy - tolerance - 1e-9
    ]
    return max(passing, default=0.0)
