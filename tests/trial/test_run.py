from __future__ import annotations

import copy

import pytest
import torch

from autoprune import rooms
from autoprune.cost import count_flops
from autoprune.criteria.bn_scale import BnScale
from autoprune.errors import BadRecipe, LossNotFinite, UnreachableTarget
from autoprune.evidence import ModelEvidence
from autoprune.recipe import Recipe
from autoprune.regularisers import RegulariserContext, Shaped
from autoprune.regularisers.network_slimming import NetworkSlimming
from autoprune.trial import Bench, measure, prepare, run_trial, train_on

QUICK = ({"name": "bn_reestimation"}, {"name": "finetune", "lr": 0.02})


def recipe(**parts: object) -> Recipe:
    return Recipe.parse({"recovery": list(QUICK), "epochs": 0, **parts})


@pytest.mark.parametrize("criterion", rooms.names("criteria"))
@pytest.mark.parametrize("allocation", ["uniform", "global", {"name": "per_group", "keep_fraction": {"layer*": 0.4}}])
def test_every_pair_meets_its_target_with_a_really_smaller_model(
    criterion: str, allocation: object, digits_bench: Bench
) -> None:
    chosen = recipe(criterion=criterion, allocation=allocation, target={"flops_fraction": 0.4})
    prepared = prepare(chosen, digits_bench, seed=0)
    model = prepared.compressed.model
    counted = count_flops(model, digits_bench.data.example_inputs)
    assert counted == round(prepared.amounts.flops_fraction * digits_bench.base.flops)
    assert 0.37 < counted / digits_bench.base.flops <= 0.4
    assert sum(p.numel() for p in model.parameters()) < digits_bench.base.params


@pytest.mark.parametrize("allocation", ["knapsack", "sensitivity", "accuracy_floor"])
@pytest.mark.parametrize(
    "parts",
    [
        {"schedule": {"name": "iterative", "count": 2, "epochs_between": 0.05}},
        {"target": {"flops_fraction": None, "params_fraction": 0.4}},
        {"low_rank": {"name": "svd", "rank_fraction": 0.5}},
        {"min_keep_fraction": 0.4},
    ],
    ids=["iterative", "params", "low_rank", "min_keep"],
)
def test_measured_amounts_go_with_every_other_part(
    allocation: str, parts: dict[str, object], digits_bench: Bench
) -> None:
    chosen = recipe(**{"target": {"flops_fraction": 0.4}, "allocation": {"name": allocation, "samples": 32}, **parts})
    prepared = prepare(chosen, digits_bench, seed=0)
    measured = measure(prepared.compressed.model, digits_bench, samples=32)
    found = measured.flops_fraction if chosen.target.flops_fraction else measured.params_fraction
    assert 0.37 < found <= 0.4
    kept = [len(prepared.kept[g.name]) / g.size for g in digits_bench.base.structure.groups]
    assert min(kept) >= chosen.min_keep_fraction


def test_channels_and_ranks_in_one_recipe_meet_the_target_exactly(digits_bench: Bench) -> None:
    chosen = recipe(low_rank={"name": "svd", "rank_fraction": 0.5}, target={"flops_fraction": 0.35})
    prepared = prepare(chosen, digits_bench, seed=0)
    assert prepared.compressed.factors
    measured = measure(prepared.compressed.model, digits_bench)
    assert measured.flops == round(prepared.amounts.flops_fraction * digits_bench.base.flops)
    assert measured.params == round(prepared.amounts.params_fraction * digits_bench.base.params)
    assert 0.33 < measured.flops_fraction <= 0.35


@pytest.mark.parametrize(
    "low_rank",
    [
        {"name": "tucker2"},
        {"name": "tucker2", "ranks": "energy"},
        {"name": "svd", "reconstruct": "outputs"},
        {"name": "svd", "scheme": "channel", "reconstruct": "outputs", "ranks": "energy"},
    ],
    ids=lambda low_rank: "-".join(low_rank.values()),
)
@pytest.mark.parametrize(
    "parts", [{}, {"criterion": None}, {"target": {"flops_fraction": None, "params_fraction": 0.3}}], ids=str
)
def test_every_way_to_rank_meets_the_target(
    low_rank: dict[str, str], parts: dict[str, object], digits_bench: Bench
) -> None:
    prepared = prepare(recipe(**({"target": {"flops_fraction": 0.4}, "low_rank": low_rank} | parts)), digits_bench, 0)
    assert prepared.compressed.factors
    measured = measure(prepared.compressed.model, digits_bench)
    assert measured.flops == round(prepared.amounts.flops_fraction * digits_bench.base.flops)
    assert measured.params == round(prepared.amounts.params_fraction * digits_bench.base.params)
    assert measured.params_fraction <= 0.3 if "target" in parts else 0.36 < measured.flops_fraction <= 0.4


def test_fitting_outputs_looks_at_the_cut_model_and_loses_less(digits_bench: Bench) -> None:
    parts = {"target": {"flops_fraction": 0.3}, "recovery": []}
    plain, fitted = (
        prepare(recipe(low_rank={"name": "svd", "reconstruct": way}, **parts), digits_bench, seed=0)
        for way in ("weights", "outputs")
    )
    assert plain.amounts == fitted.amounts
    assert fitted.cost.forward_samples - plain.cost.forward_samples == digits_bench.source.samples
    losses = [measure(p.compressed.model, digits_bench).loss for p in (plain, fitted)]
    assert losses[1] < losses[0]


def test_the_base_model_stays_as_it_was(digits_bench: Bench) -> None:
    before = copy.deepcopy(digits_bench.base.model.state_dict())
    run_trial(recipe(epochs=0.1), digits_bench, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in digits_bench.base.model.state_dict().items())


def test_same_seed_same_weights_other_seed_others(digits_bench: Bench) -> None:
    chosen = recipe(criterion="random", epochs=0.1)
    runs = [run_trial(chosen, digits_bench, seed).model.state_dict() for seed in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values(), strict=True))


def test_finetuning_wins_back_accuracy(digits_bench: Bench) -> None:
    outcome = run_trial(recipe(epochs=2.0, target={"flops_fraction": 0.35}), digits_bench, seed=0)
    assert outcome.validation.accuracy > outcome.before_training.accuracy + 0.02
    assert outcome.cost.trained_samples == 2 * len(digits_bench.data.train)


def test_calibrated_statistics_beat_the_stale_ones(digits_bench: Bench) -> None:
    calibrated = prepare(recipe(target={"flops_fraction": 0.5}), digits_bench, seed=0)
    stale = prepare(recipe(target={"flops_fraction": 0.5}, recovery=["finetune"]), digits_bench, seed=0)
    accuracy = [measure(p.compressed.model, digits_bench).accuracy for p in (calibrated, stale)]
    assert accuracy[0] > accuracy[1]


def test_iterative_trains_between_the_cuts_and_still_meets_the_target(digits_bench: Bench) -> None:
    schedule = {"name": "iterative", "count": 3, "epochs_between": 0.2}
    chosen = recipe(schedule=schedule, criterion="taylor_2019", allocation="global", target={"flops_fraction": 0.3})
    prepared = prepare(chosen, digits_bench, seed=0)
    counted = count_flops(prepared.compressed.model, digits_bench.data.example_inputs)
    assert 0.27 < counted / digits_bench.base.flops <= 0.3
    assert prepared.cost.trained_samples >= 2 * int(0.2 * len(digits_bench.data.train))
    # what it says it kept of the base model is what it kept
    rebuilt = digits_bench.base.structure.cut(digits_bench.model, prepared.kept)
    shapes = [p.shape for p in prepared.compressed.model.parameters()]
    assert [p.shape for p in rebuilt.parameters()] == shapes


def test_iterative_with_ranks_factorises_once_at_the_end(digits_bench: Bench) -> None:
    chosen = recipe(
        schedule={"name": "iterative", "count": 2, "epochs_between": 0.05},
        low_rank={"name": "svd", "rank_fraction": 0.5},
        target={"flops_fraction": 0.35},
    )
    prepared = prepare(chosen, digits_bench, seed=0)
    measured = measure(prepared.compressed.model, digits_bench)
    assert prepared.compressed.factors
    assert 0.33 < measured.flops_fraction <= 0.35


def test_validation_subset_is_the_same_every_time(digits_bench: Bench) -> None:
    first = measure(digits_bench.model, digits_bench, samples=40)
    assert first.count == 40
    assert measure(digits_bench.model, digits_bench, samples=40).loss == first.loss


def test_unreachable_target_is_bad_input(digits_bench: Bench) -> None:
    with pytest.raises(UnreachableTarget, match="cannot be reached by this recipe"):
        prepare(recipe(target={"flops_fraction": 0.0005}), digits_bench, seed=0)


def test_diverging_training_is_a_failed_trial(digits_bench: Bench) -> None:
    wild = recipe(recovery=[{"name": "finetune", "lr": 1.0, "momentum": 0.99}])
    prepared = prepare(wild, digits_bench, seed=0)
    model = prepared.compressed.model
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    with pytest.raises(LossNotFinite):
        train_on(model, wild, digits_bench, seed=0, epochs=0.5)


def test_criterion_that_suits_no_group_says_why(digits_bench: Bench) -> None:
    from autoprune.base import make_base

    mlp = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    bench = Bench(make_base(mlp, digits_bench.data.example_inputs), digits_bench.data, digits_bench.task)
    with pytest.raises(BadRecipe, match="criterion 'bn_scale' scores no group of this model: bn_scale needs"):
        prepare(recipe(criterion="bn_scale"), bench, seed=0)


SLIMMING = {"name": "network_slimming", "epochs": 0.25, "strength": 0.05, "lr": 0.05}


def test_a_regulariser_trains_a_copy_whose_scores_decide(digits_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    base = copy.deepcopy(digits_bench.base.model.state_dict())
    seen: list[torch.Tensor] = []
    real = BnScale.score

    def spied(self: BnScale, group: object, evidence: ModelEvidence) -> torch.Tensor:
        seen.append(evidence.weight("bn1.weight").clone())
        return real(self, group, evidence)  # type: ignore[arg-type]

    monkeypatch.setattr(BnScale, "score", spied)
    prepared = prepare(recipe(criterion="bn_scale", regulariser=SLIMMING), digits_bench, seed=0)
    assert not torch.equal(seen[0], base["bn1.weight"])
    assert all(torch.equal(v, base[k]) for k, v in digits_bench.base.model.state_dict().items())
    assert prepared.cost.trained_samples == round(0.25 * len(digits_bench.data.train))


def test_a_regulariser_that_chose_is_followed(digits_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut takes the units named on the way, though the weights were changed since."""
    chosen: dict[str, list[int]] = {}

    def shape(self: NetworkSlimming, model: torch.nn.Module, context: RegulariserContext) -> Shaped:
        chosen.update(context.choose(model))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.flip(0))
        return Shaped(trained_samples=7, as_chosen=True)

    monkeypatch.setattr(NetworkSlimming, "shape", shape)
    for target in (0.5, 0.3):
        chosen_recipe = recipe(criterion="l1_norm", regulariser=SLIMMING, target={"flops_fraction": target})
        prepared = prepare(chosen_recipe, digits_bench, seed=0)
        assert prepared.kept == chosen
        assert target - 0.03 < prepared.amounts.flops_fraction <= target
        assert prepared.cost.trained_samples == 7


def test_a_fresh_start_has_new_weights_by_seed_and_leaves_no_trace_of_the_base_model(digits_bench: Bench) -> None:
    fresh = recipe(start="fresh", recovery=["finetune"], target={"flops_fraction": 1.0})
    models = [prepare(fresh, digits_bench, seed).compressed.model.state_dict() for seed in (1, 1, 2)]
    base = digits_bench.base.model.state_dict()
    for name in ("conv1.weight", "layer2.conv1.weight", "linear.weight"):
        assert torch.equal(models[0][name], models[1][name])
        assert not torch.equal(models[0][name], models[2][name])
        assert not torch.equal(models[0][name], base[name])
    assert torch.equal(models[0]["bn1.running_mean"], torch.zeros(16))
    assert torch.equal(models[0]["bn1.weight"], torch.ones(16))


def test_a_fresh_start_is_scored_by_its_own_evidence(digits_bench: Bench) -> None:
    kept = [
        prepare(recipe(start=start, criterion="taylor_2019"), digits_bench, seed).kept
        for start, seed in (("base", 0), ("fresh", 0), ("fresh", 1), ("fresh", 0))
    ]
    assert kept[0] != kept[1] != kept[2]
    assert kept[1] == kept[3]


def test_a_regulariser_without_a_cut_is_refused() -> None:
    with pytest.raises(BadRecipe, match="a regulariser prepares a cut of channels"):
        Recipe.parse({"criterion": None, "low_rank": "svd", "regulariser": "network_slimming"})


@pytest.mark.parametrize("depth", rooms.names("depth"))
@pytest.mark.parametrize(
    "allocation", ["uniform", {"name": "per_group", "keep_fraction": {"layer*.conv1": 0.4, "layer3.2.conv1": 0.3}}]
)
def test_depth_and_channels_meet_the_target_together(depth: str, allocation: object, deep_bench: Bench) -> None:
    chosen = recipe(
        depth={"name": depth, "share": 0.6},
        allocation=allocation,
        criterion="taylor_2019",
        target={"flops_fraction": 0.4},
    )
    prepared = prepare(chosen, deep_bench, seed=0)
    model, skipped = prepared.compressed.model, prepared.amounts.skipped
    assert len(skipped) == 3
    assert prepared.notes[0].startswith("depth skips 3 of the 6 blocks")
    assert not any(name.startswith(block) for name in prepared.kept for block in skipped)
    counted = count_flops(model, deep_bench.data.example_inputs)
    assert counted == round(prepared.amounts.flops_fraction * deep_bench.base.flops)
    assert 0.37 < counted / deep_bench.base.flops <= 0.4
    rebuilt = deep_bench.base.structure.cut(deep_bench.model, prepared.kept, skipped)
    assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in model.parameters()]


def test_depth_ranks_and_steps_in_one_recipe(deep_bench: Bench) -> None:
    chosen = recipe(
        depth={"name": "random", "share": 0.4},
        schedule={"name": "iterative", "count": 2, "epochs_between": 0.05},
        low_rank={"name": "svd", "rank_fraction": {"layer*.conv2": 0.5}},
        target={"flops_fraction": 0.35},
    )
    prepared = prepare(chosen, deep_bench, seed=0)
    measured = measure(prepared.compressed.model, deep_bench)
    assert prepared.compressed.factors
    assert prepared.amounts.skipped
    assert measured.flops == round(prepared.amounts.flops_fraction * deep_bench.base.flops)
    assert measured.params == round(prepared.amounts.params_fraction * deep_bench.base.params)
    assert 0.32 < measured.flops_fraction <= 0.35


def test_depth_alone_takes_the_fewest_blocks_and_trains(deep_bench: Bench) -> None:
    chosen = recipe(depth={"name": "sr_init", "n_seeds": 1}, criterion=None, target={"flops_fraction": 0.6}, epochs=0.2)
    outcome = run_trial(chosen, deep_bench, seed=0)
    base = deep_bench.base.structure
    assert outcome.amounts.counts.keys() == set(base.without_blocks(outcome.amounts.skipped).names)
    assert len(outcome.amounts.skipped) == 4
    assert outcome.validation.flops == base.without_blocks(outcome.amounts.skipped).flops()
    assert outcome.validation.flops_fraction <= 0.6
    fewer = base.without_blocks(outcome.amounts.skipped[:3])
    assert fewer.flops() / base.flops() > 0.6
    with pytest.raises(UnreachableTarget, match="reachable range"):
        prepare(chosen.with_target(flops_fraction=0.2), deep_bench, seed=0)
    nearest = recipe(depth={"name": "random", "unreachable": "nearest"}, criterion=None, target={"flops_fraction": 0.2})
    reached = prepare(nearest, deep_bench, seed=0)
    assert 0.2 < reached.amounts.flops_fraction < 0.42
    assert "is not met: it is the nearest block count" in reached.notes[0]


def test_recipes_without_depth_are_as_they_were(deep_bench: Bench) -> None:
    prepared = prepare(recipe(target={"flops_fraction": 0.5}), deep_bench, seed=0)
    assert prepared.amounts.skipped == ()
    assert prepared.notes == ()
