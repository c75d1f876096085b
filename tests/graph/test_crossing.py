"""Groups on one axis are told apart."""

from __future__ import annotations

import torch

from autoprune.graph import trace
from autoprune.graph.crossing import apart

from .grammar import image_network
from .networks import networks
from .transformers import transformer


def test_heads_in_one_set_and_their_dimensions_in_the_other() -> None:
    structure = trace(*transformer("fused"), verify=False)
    sets = apart(structure)
    kinds = dict(zip(structure.names, structure.kinds, strict=True))
    assert sorted({kinds[name] for name in members}.pop() for members in sets) == ["head", "head_dim"]
    assert sorted(name for members in sets for name in members) == sorted(n for n in kinds if kinds[n] != "channel")
    assert all(len(members) == 2 for members in sets)


def test_halves_and_places_of_a_channel_shuffle() -> None:
    structure = trace(image_network([("channel_shuffle", 4)], False).eval(), torch.zeros(1, 3, 5, 5), verify=False)
    assert apart(structure) == [{"1.before"}, {"1.before#2"}]


def test_nothing_is_shared_in_a_plain_network() -> None:
    assert apart(trace(*networks()["plain"], verify=False)) == []
