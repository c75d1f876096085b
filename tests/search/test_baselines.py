import pytest

from autoprune.errors import BadInput, BadRecipe, UnknownName
from autoprune.recipe import Recipe
from autoprune.search.baselines import build_baselines, names


def test_every_shipped_baseline_is_a_recipe():
    made = build_baselines(names())
    assert [b.name for b in made] == list(names())
    assert made[0].recipe.criterion.name == "l1_norm"


def test_recipes_and_files(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(Recipe(criterion="l2_norm").to_yaml())
    made = build_baselines([{"criterion": "random", "preset": "by lot"}, str(path)])
    assert [b.name for b in made] == ["by lot", "mine"]
    assert made[1].recipe.criterion.name == "l2_norm"


def test_bad_ones():
    with pytest.raises(UnknownName, match="Did you mean 'uniform_l1'"):
        build_baselines(["uniform_l2"])
    with pytest.raises(BadRecipe, match=r"baselines\[0\]: criterium"):
        build_baselines([{"criterium": "l1_norm"}])
    with pytest.raises(BadInput, match=r"nowhere\.yaml does not exist"):
        build_baselines(["nowhere.yaml"])
    with pytest.raises(BadInput, match="there twice"):
        build_baselines(["uniform_l1", "uniform_l1"])
