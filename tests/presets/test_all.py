"""Every preset is a valid recipe that cites its paper."""

from __future__ import annotations

import re

import pytest

from autoprune import presets
from autoprune.errors import UnknownName
from autoprune.recipe import Recipe


@pytest.mark.parametrize("name", presets.names())
def test_preset_reads_and_cites(name: str) -> None:
    preset = presets.read(name)
    assert preset.recipe.preset == name
    assert re.search(r"arXiv \d{4}\.\d{5}\.$", preset.summary)
    assert Recipe.from_yaml(preset.recipe.to_yaml()) == preset.recipe


def test_l1_filters_is_what_the_paper_does() -> None:
    recipe = presets.load("l1_filters")
    assert recipe.criterion is not None
    assert (recipe.criterion.name, recipe.allocation.name, recipe.schedule.name) == (
        "l1_norm",
        "sensitivity",
        "one_shot",
    )


def test_hap_implants_the_upper_part_of_what_it_affects() -> None:
    recipe = presets.load("hap")
    assert recipe.replacement is not None
    assert recipe.replacement.config() == {"name": "implant", "fraction": 0.1, "init": "centre"}


def test_sr_init_is_depth_alone() -> None:
    recipe = presets.load("sr_init")
    assert (recipe.criterion, recipe.low_rank) == (None, None)
    assert recipe.depth is not None
    assert recipe.depth.config() | {"name": "sr_init", "n_seeds": 1, "allow_first": True} == recipe.depth.config()


def test_unknown_preset() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'l1_filters'"):
        presets.load("l1_filter")
