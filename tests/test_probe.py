from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from autoprune.evidence import ModelEvidence
from autoprune.evidence.cut_losses import CutLosses
from autoprune.probe import Probe
from autoprune.recovery import Recovery
from autoprune.recovery.bn_reestimation import BnReestimation
from autoprune.recovery.compensation import Compensation
from autoprune.tasks import Evaluation, evaluate
from autoprune.trial import Bench


def probe_of(bench: Bench, *corrections: Recovery, cache: Path | None = None) -> Probe:
    structure = bench.base.structure
    evidence = ModelEvidence(bench.model, structure, bench.source, seed=0, cache=cache, fingerprint="one")
    return Probe(
        model=bench.model,
        structure=structure,
        evidence=evidence,
        source=bench.source,
        choose=lambda counts: {name: list(range(count)) for name, count in counts.items()},
        corrections=corrections,
        context=bench.recovery_context(0),
        batch_size=64,
    )


def test_it_measures_the_really_cut_model_on_training_samples(digits_bench: Bench) -> None:
    probe = probe_of(digits_bench)
    name = digits_bench.base.structure.names[0]
    small = digits_bench.base.structure.cut(digits_bench.model, {name: list(range(5))})
    train = digits_bench.data.train
    assert probe({name: 5}, len(train)).loss == pytest.approx(evaluate(small, train, digits_bench.task).loss, rel=1e-5)


def test_a_cut_is_measured_once_and_counted_once(digits_bench: Bench) -> None:
    told: list[int] = []
    probe = probe_of(digits_bench, BnReestimation())
    probe.report = told.append
    names = digits_bench.base.structure.names
    first = probe({names[0]: 8, names[1]: 8}, 64)
    assert probe({names[1]: 8, names[0]: 8}, 64) is first
    assert (told, probe.forward_samples) == ([1], 2 * 64)  # once for the batch norms, once to evaluate
    probe({names[0]: 8}, 64)
    assert told == [1, 2]


def test_what_corrects_the_cut_matters_and_is_not_mixed_up(digits_bench: Bench) -> None:
    name = digits_bench.base.structure.names[0]
    evidence = probe_of(digits_bench).evidence
    losses = []
    for corrections in ((), (BnReestimation(),), (Compensation(), BnReestimation())):
        probe = probe_of(digits_bench, *corrections)
        probe.evidence = evidence
        losses.append(probe({name: 8}, 256).loss)
    assert len(set(losses)) == 3
    assert losses[2] < losses[0]


def test_measurements_travel_by_file_and_only_to_the_same_model(digits_bench: Bench, tmp_path: Path) -> None:
    name = digits_bench.base.structure.names[0]
    first = probe_of(digits_bench, cache=tmp_path)
    found = first({name: 8}, 32)
    second = probe_of(digits_bench, cache=tmp_path)
    assert second({name: 8}, 32) == found
    assert (first.fresh, second.fresh) == (1, 0)
    other = CutLosses(tmp_path / "group_sensitivities.jsonl", stamp=lambda: "another model")
    other.refresh()
    assert other.get({name: list(range(8))}, [], 32) is None


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "losses.jsonl"
    losses = CutLosses(file, stamp=lambda: "s")
    losses.measured({"a": [0]}, [], 8, lambda: Evaluation(1.0, 0.5, 8))
    with file.open("a") as half:
        half.write('{"key": "unfin')
    again = CutLosses(file, stamp=lambda: "s")
    again.refresh()
    assert again.get({"a": [0]}, [], 8) == Evaluation(1.0, 0.5, 8)
    assert again.get({"a": [0]}, [], 16) is None


def test_the_model_stays_as_it_was(digits_bench: Bench) -> None:
    before = copy.deepcopy(digits_bench.model.state_dict())
    probe_of(digits_bench, Compensation(), BnReestimation())({digits_bench.base.structure.names[0]: 4}, 64)
    after = digits_bench.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module.training for module in digits_bench.model.modules())
