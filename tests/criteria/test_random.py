from __future__ import annotations

import torch

from autoprune.criteria.random import Random
from autoprune.evidence import ModelEvidence
from autoprune.trial import Bench


def test_seeds_and_groups_draw_differently(digits_bench: Bench) -> None:
    evidence: ModelEvidence = digits_bench.evidence
    first, second = (g for g in digits_bench.base.structure.groups if g.size == 16)
    one = Random().score(first, evidence.with_seed(1))
    assert torch.equal(one, Random().score(first, evidence.with_seed(1)))
    assert not torch.equal(one, Random().score(first, evidence.with_seed(2)))
    assert not torch.equal(one, Random().score(second, evidence.with_seed(1)))
    assert 0 <= float(one.min()) <= float(one.max()) < 1
