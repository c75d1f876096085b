import contextlib

import optuna
import pytest

from autoprune import rooms, shipped
from autoprune.errors import BadRecipe, NothingToDo, UnknownName
from autoprune.evidence.effort import effort_of
from autoprune.recipe import Recipe
from autoprune.search.baselines import build_baselines, named
from autoprune.search.space import load_space, parse_space
from autoprune.study.testing import fake_structure

ITEMS = fake_structure(["stem", "block1.conv1", "block1.conv2"])


def space(**document):
    return parse_space(document, "space")


def drawn(made, params=None, seed=0):
    """Return the recipe and the draws of one trial whose `params` are given."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    if params:
        study.enqueue_trial(params)
    trial = study.ask()
    return made.suggest(trial, ITEMS), trial.params


def names(made):
    return [d.name for d in made.dimensions(ITEMS)]


def test_an_empty_space_is_the_default_recipe():
    recipe, params = drawn(space())
    assert recipe == Recipe()
    assert params == {}


def test_plain_values_are_fixed():
    made = space(criterion={"name": "bn_scale"}, recovery=["bn_reestimation"], normalisation="l2")
    recipe, params = drawn(made)
    assert recipe.criterion.name == "bn_scale"
    assert recipe.normalisation == "l2"
    assert params == {}
    assert names(made) == []


def test_search_is_the_declared_range():
    made = space(recovery=[{"name": "finetune", "lr": "search"}])
    (dimension,) = made.dimensions(ITEMS)
    assert dimension.name == "recovery.finetune.lr"
    assert (dimension.low, dimension.high, dimension.log) == (0.005, 0.1, True)


def test_a_range_of_ones_own():
    lr = {"low": 0.01, "high": 0.05, "step": 0.01}
    recipe, params = drawn(space(recovery=[{"name": "finetune", "lr": lr}]))
    assert recipe.recovery[0].lr == params["recovery.finetune.lr"]
    assert round(recipe.recovery[0].lr * 100) in range(1, 6)


def test_per_item_hyperparameters_have_a_dimension_each():
    made = space(allocation={"name": "per_group", "keep_fraction": "search"})
    assert names(made) == [f"allocation.per_group.keep_fraction[{g.name}]" for g in ITEMS.groups]
    recipe, params = drawn(made)
    assert recipe.allocation.keep_fraction == {
        g.name: params[f"allocation.per_group.keep_fraction[{g.name}]"] for g in ITEMS.groups
    }


def test_a_shared_range_is_one_number_for_all_items():
    keep = {"low": 0.25, "high": 0.75, "shared": True}
    made = space(allocation={"name": "per_group", "keep_fraction": keep})
    assert names(made) == ["allocation.per_group.keep_fraction"]
    recipe, params = drawn(made)
    assert recipe.allocation.keep_fraction == params["allocation.per_group.keep_fraction"]
    assert made.encode(recipe, ITEMS) == params
    uneven = recipe.plain() | {"allocation": {"name": "per_group", "keep_fraction": {"stem": 0.5, "*": 0.6}}}
    assert made.encode(Recipe.parse(uneven), ITEMS) is None


def test_shared_is_refused_where_there_is_nothing_to_share():
    lr = {"low": 0.01, "high": 0.05, "shared": True}
    with pytest.raises(BadRecipe, match="shared: true where every group or layer has a value"):
        space(recovery=[{"name": "finetune", "lr": lr}])


def test_per_item_globs_are_treated_apart():
    spec = {"stem": 0.9, "block1.*": {"low": 0.2, "high": 0.4}}
    made = space(allocation={"name": "per_group", "keep_fraction": spec})
    assert names(made) == [
        "allocation.per_group.keep_fraction[block1.conv1]",
        "allocation.per_group.keep_fraction[block1.conv2]",
    ]
    recipe, _ = drawn(made)
    assert recipe.allocation.keep_fraction["stem"] == 0.9
    assert 0.2 <= recipe.allocation.keep_fraction["block1.conv1"] <= 0.4


def test_a_glob_that_matches_nothing_is_named():
    made = space(allocation={"name": "per_group", "keep_fraction": {"blok*": 0.5}})
    with pytest.raises(BadRecipe, match="no group matches 'blok\\*'; there are stem"):
        made.check(ITEMS)


CONDITIONAL = {
    "allocation": {"choose": ["uniform", {"name": "per_group", "keep_fraction": "search"}]},
    "schedule": {"choose": ["one_shot", {"name": "iterative", "count": "search"}]},
}


def test_dimensions_of_what_is_not_chosen_are_not_drawn():
    made = space(**CONDITIONAL)
    _, params = drawn(made, {"allocation": "uniform", "schedule": "iterative"})
    assert set(params) == {"allocation", "schedule", "schedule.iterative.count"}
    _, params = drawn(made, {"allocation": "per_group", "schedule": "one_shot"})
    assert len(params) == 2 + len(ITEMS.groups)
    assert len(made.dimensions(ITEMS)) == 3 + len(ITEMS.groups)


def test_the_same_method_twice_has_two_labels():
    twice = [{"name": "iterative", "count": 2}, {"name": "iterative", "count": "search"}]
    made = space(schedule={"choose": twice})
    assert names(made) == ["schedule", "schedule.iterative#2.count"]
    recipe, _ = drawn(made, {"schedule": "iterative"})
    assert recipe.schedule.count == 2


def test_null_is_a_choice_where_a_part_may_be_absent():
    made = space(low_rank={"choose": [None, "svd"]})
    assert drawn(made, {"low_rank": "none"})[0].low_rank is None
    assert drawn(made, {"low_rank": "svd"})[0].low_rank.name == "svd"


def test_choices_inside_the_list_of_recovery():
    made = space(recovery=["bn_reestimation", {"choose": [None, "finetune", "distillation"]}])
    assert [r.name for r in drawn(made, {"recovery[1]": "none"})[0].recovery] == ["bn_reestimation"]
    assert drawn(made, {"recovery[1]": "distillation"})[0].recovery[1].name == "distillation"


def test_search_of_a_whole_part_is_every_method():
    made = space(criterion="search")
    assert {name for _, name in made.methods()} >= {"l1_norm", "random", "taylor_2019"}
    made.check(ITEMS)


def test_methods_lists_all_that_can_be_chosen():
    assert ("schedules", "iterative") in space(**CONDITIONAL).methods()
    assert ("allocation", "global") not in space(**CONDITIONAL).methods()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["channels", "low_rank"])
def test_encode_gives_the_draws_of_a_recipe(name, seed):
    made = load_space(name)
    recipe, params = drawn(made, seed=seed)
    assert made.encode(recipe, ITEMS) == pytest.approx(params)


def test_the_low_rank_space_offers_every_method_fit_and_way_to_rank():
    made, found = load_space("low_rank"), set()
    for seed in range(300):
        with contextlib.suppress(NothingToDo):
            low_rank = drawn(made, seed=seed)[0].low_rank
        config = {} if low_rank is None else low_rank.config()
        found.add(tuple(config.get(key) for key in ("name", "ranks", "scheme", "reconstruct")))
    ways = [("tucker2", None, None)]
    ways += [("svd", scheme, fit) for scheme in ("spatial", "channel") for fit in ("weights", "outputs")]
    every = {(name, ranks, *rest) for name, *rest in ways for ranks in ("searched", "energy")}
    assert found == every | {(None,) * 4}


@pytest.mark.parametrize("name", ["channels", "low_rank"])
def test_baselines_are_points_of_the_shipped_spaces(name):
    made = load_space(name)
    for baseline in build_baselines(["uniform_l1", "global_taylor"]):
        draws = made.encode(baseline.recipe, ITEMS)
        assert draws is not None
        assert drawn(made, draws)[0] == baseline.recipe


@pytest.mark.parametrize(("space", "start"), [("low_rank", "fitted_ranks"), ("channels", "knapsack")])
def test_warm_starts_are_points_of_the_spaces_that_have_their_kind(space, start):
    made = load_space(space)
    draws = made.encode(named(start), ITEMS)
    assert draws is not None
    assert drawn(made, draws)[0] == named(start)


def test_channels_chooses_from_all_criteria_but_those_that_cost_a_pass_per_unit_or_output():
    chosen = {name for room, name in load_space("channels").methods() if room == "criteria"}
    too_dear = {"taylor_2019_second_order", "sosp_i"}
    assert set(rooms.names("criteria")) - chosen == too_dear | {"random"}
    for name in rooms.names("criteria"):
        spent = effort_of(rooms.method_class("criteria", name).needs)
        assert (spent.per_unit > 0 or spent.per_output > 0) == (name in too_dear)


def test_encode_refuses_what_is_not_in_the_space():
    made = space(criterion="l1_norm", recovery=[{"name": "finetune", "lr": {"low": 0.01, "high": 0.02}}])
    assert made.encode(Recipe(criterion="l2_norm"), ITEMS) is None
    assert made.encode(Recipe(recovery=({"name": "finetune", "lr": 0.05},)), ITEMS) is None
    assert made.encode(Recipe(recovery=({"name": "finetune", "lr": 0.015},)), ITEMS) == {"recovery.finetune.lr": 0.015}


@pytest.mark.parametrize("name", shipped.names("search_spaces"))
def test_every_shipped_space_loads_and_draws(name):
    load_space(name).check(ITEMS)


def test_a_space_may_hold_recipes_that_do_nothing_but_not_those_alone():
    load_space({"criterion": {"choose": [None, "l1_norm"]}}).check(ITEMS)
    with pytest.raises(NothingToDo, match="criterion, low_rank, sparsity and depth are all null"):
        load_space({"criterion": None}).check(ITEMS)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"criterium": "l1_norm"}, "Did you mean 'criterion'"),
        ({"criterion": "l1norm"}, "space: criterion: .*Did you mean 'l1_norm'"),
        ({"criterion": {"choose": []}}, "space: criterion: choose takes a list with at least one"),
        ({"criterion": {"choose": ["l1_norm"], "name": "x"}}, "no other key"),
        ({"allocation": None}, "space: allocation must be a method's name"),
        ({"schedule": {"name": "iterative", "counts": 3}}, "iterative has no hyperparameter 'counts'"),
        ({"schedule": {"name": "iterative", "count": 0}}, "schedule.iterative.count must be from 1 to 100"),
        ({"schedule": {"name": "iterative", "count": {"low": 0, "high": 3}}}, "count.low must be from 1"),
        ({"schedule": {"name": "iterative", "count": {"low": 3, "high": 2}}}, "low must be less than high"),
        ({"schedule": {"name": "iterative", "count": {"low": 2}}}, "a range has low and high"),
        ({"schedule": {"name": "iterative", "count": {"low": 1, "high": 9, "step": 0.5}}}, "whole number"),
        ({"recovery": "finetune"}, "recovery must be a list"),
        ({"recovery": [{"name": "finetune", "lr": {"low": 0.1, "high": 0.2, "log": True, "step": 0.1}}]}, "not both"),
        ({"recovery": [{"name": "finetune", "optimizer": {"low": 1, "high": 2}}]}, "one of sgd, adamw"),
        ({"normalisation": "means"}, "space: normalisation must be one of none"),
        ({"target": 0.5}, "the study's `targets`"),
        ({"epochs": 3}, "the study's `rungs`"),
    ],
)
def test_mistakes_name_the_place(document, message):
    with pytest.raises((BadRecipe, UnknownName), match=message):
        parse_space(document, "space")


def test_one_name_has_one_range():
    lists = [
        [{"name": "finetune", "lr": {"low": 0.01, "high": high}}, *rest]
        for high, rest in [(0.1, []), (0.2, ["bn_reestimation"])]
    ]
    with pytest.raises(BadRecipe, match=r"recovery\.finetune\.lr has two different ranges"):
        space(recovery={"choose": lists}).check(ITEMS)


def test_recipes_that_contradict_themselves_show_before_any_trial():
    with pytest.raises(BadRecipe, match="only one method may train"):
        space(recovery=["finetune", "distillation"]).check(ITEMS)


def test_a_function_is_a_space():
    made = load_space("autoprune.study.testing:example_space")
    recipe, params = drawn(made)
    assert recipe.criterion.name == params["criterion"]
    assert made.dimensions(ITEMS) == ()
    assert made.encode(recipe, ITEMS) is None


def test_a_function_must_return_a_recipe():
    made = load_space("builtins:repr")
    with pytest.raises(BadRecipe, match="must return a Recipe, got str"):
        drawn(made)


def test_depth_is_searched_together_with_channels():
    made = load_space("depth")
    assert {("depth", "sr_init"), ("depth", "random"), ("criteria", "taylor_2019")} <= set(made.methods())
    names = [d.name for d in made.dimensions(ITEMS)]
    assert {"depth", "depth.sr_init.share", "depth.random.share"} <= set(names)
    recipe, params = drawn(made)
    assert made.encode(recipe, ITEMS) == params
    assert parse_space({"depth": None}, "space").suggest(None, ITEMS).depth is None
    # what has no range worth searching keeps its default
    assert not [d for d in space(depth="search").dimensions(ITEMS) if d.name.endswith(".count")]


def test_where_a_recipe_starts_can_be_searched() -> None:
    space = parse_space({"start": {"choose": ["base", "fresh"]}}, "here")
    assert [d.choices for d in space.dimensions(fake_structure())] == [("base", "fresh")]
    assert space.encode(Recipe.parse({"start": "fresh"}), fake_structure()) == {"start": "fresh"}
    with pytest.raises(BadRecipe, match="start must be one of base, fresh, got 'new'"):
        parse_space({"start": "new"}, "here")


def test_a_regulariser_is_one_choice_among_none_and_its_methods() -> None:
    space = load_space("regularised")
    plain = space.encode(Recipe.parse({"regulariser": None}), fake_structure())
    assert plain is not None
    assert plain["regulariser"] == "none"
    assert ("regularisers", "greg_2") in space.methods()


def test_everything_offers_every_kind_of_choice_and_they_combine():
    made = load_space("everything")
    assert {room for room, _ in made.methods()} == set(rooms.ROOMS) - {"quantisation"}
    seen, together = set(), 0
    for seed in range(200):
        recipe = drawn(made, seed=seed)[0]
        kinds = {k for k in ("depth", "regulariser", "low_rank", "sparsity", "replacement") if getattr(recipe, k)}
        seen |= {(k, getattr(recipe, k).name) for k in kinds}
        together = max(together, len(kinds))
    assert {name for kind, name in seen if kind == "regulariser"} == (
        set(rooms.names("regularisers")) - {"certified"}  # gives accuracy away for an objective of its own
    )
    assert {name for kind, name in seen if kind == "low_rank"} == set(rooms.names("lowrank"))
    assert together == 5
