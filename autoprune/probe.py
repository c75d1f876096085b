"""Group sensitivities: what a model loses when only some of its groups are cut, without any training.

A copy is really cut by the recipe's scores, corrected by those recovery methods of the recipe that follow a cut, and
evaluated on a fixed subset of the training samples, not augmented. The model itself does not change. Batch norms are
not estimated anew: that would cost more than the measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import Structure
from autoprune.recovery import Cut, Recovery, RecoveryContext
from autoprune.tasks import Evaluation, evaluate


@dataclass(kw_only=True)
class Probe:
    """Measures cut models, each cut only once; a `Measure` for allocations.

    choose: counts by group to the units that stay. context: for the corrections. `forward_samples` and `seconds` are
    what the measurements took that were not known already; `report` is told of each.
    """

    model: nn.Module
    structure: Structure
    evidence: ModelEvidence
    source: Source
    choose: Callable[[Mapping[str, int]], Mapping[str, list[int]]]
    corrections: Sequence[Recovery]
    context: Callable[[Cut], RecoveryContext]
    batch_size: int
    report: Callable[[int], None] | None = None
    forward_samples: int = 0
    seconds: float = 0.0
    fresh: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.evidence.cut_losses.refresh()

    def __call__(self, counts: Mapping[str, int], samples: int) -> Evaluation:
        """Return loss and accuracy on `samples` training samples. Groups that are not named stay whole."""
        cut = {name: count for name, count in counts.items() if count < self.structure.group(name).size}
        kept = self.choose(cut)
        configs = [method.config() for method in self.corrections] if cut else []
        known = self.evidence.cut_losses.get(kept, configs, samples)
        if known is not None:
            return known
        began = time.perf_counter()
        found = self.evidence.cut_losses.measured(kept, configs, samples, lambda: self._measure(kept, samples))
        self.forward_samples += found.count
        self.seconds += time.perf_counter() - began
        self.fresh += 1
        if self.report is not None:
            self.report(self.fresh)
        return found

    def _measure(self, kept: Mapping[str, list[int]], samples: int) -> Evaluation:
        small = self.structure.cut(self.model, kept)
        if kept:
            cut = Cut(structure=self.structure, evidence=self.evidence, selection=self.structure.selection(kept))
            context = self.context(cut)
            for method in self.corrections:
                self.forward_samples += method.recover(small, context, 0.0).forward_samples
        return evaluate(small.eval(), self.source.data.train, self.source.task, self.batch_size, limit=samples)
