"""Group sensitivities: what a model loses when only some of its groups are cut, without any training.

A copy is really cut by the recipe's scores, put right by those recovery methods of the recipe that need no training,
and evaluated on a fixed subset of the training samples, not augmented. Recovery methods see that subset only, so that
estimating batch norms anew costs no more than the evaluation. The model itself does not change.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from autoprune.data import Split
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import Structure
from autoprune.recovery import Cut, Recovery, RecoveryContext
from autoprune.seeds import derive_seed
from autoprune.tasks import Evaluation, evaluate

_SUBSET_SEED = derive_seed(0, "probe")


@dataclass(kw_only=True)
class Probe:
    """Measures cut models, each cut only once; a `Measure` for allocations.

    choose: counts by group to the units that stay. context: for the corrections, without a cut. `forward_samples` and
    `seconds` are what the measurements took that were not known already; `report` is told of each.
    """

    model: nn.Module
    structure: Structure
    evidence: ModelEvidence
    source: Source
    choose: Callable[[Mapping[str, int]], Mapping[str, list[int]]]
    corrections: Sequence[Recovery]
    context: RecoveryContext
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
        configs = [method.config() for method in self.corrections]
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
        split = self._subset(samples)
        cut = Cut(structure=self.structure, evidence=self.evidence, selection=self.structure.selection(kept))
        data = dataclasses.replace(self.source.data, train=split)
        context = dataclasses.replace(self.context, data=data, cut=cut)
        # Batch norms are estimated anew in the uncut model, too: what that alone changes is not due to a cut.
        for method in self.corrections:
            if kept or not method.follows_cut:
                self.forward_samples += method.recover(small, context, 0.0).forward_samples
        return evaluate(small.eval(), split, self.source.task, self.batch_size)

    def _subset(self, samples: int) -> Split:
        """Return the first samples of a fixed order, which mixes the classes: fewer are a part of more."""
        train = self.source.data.train
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_SUBSET_SEED))
        return train.subset(order[:samples])
