"""Activations of units: the map of every unit where its producers finish it and where its readers read it.

For a sample, a unit's map is P x Q: height and width behind a convolution, m x T for a head of m features at T tokens,
1 x T for one feature at T tokens, m x 1 where nothing is repeated. Memory is bounded: every tensor holds at most
`MOST_IMAGES` samples, and no more than fit into `MOST_VALUES` numbers as long as there are `LEAST_IMAGES`; of the
places where a group is read (or written) at most `MOST_PLACES`, evenly spread, are looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Group, Structure
from autoprune.graph.flow import Flow, Tap

MOST_IMAGES = 128
LEAST_IMAGES = 16
MOST_VALUES = 2**21
MOST_PLACES = 8

Where = Literal["written", "read"]


@dataclass
class _Kept:
    """What is kept of one tap."""

    group: str
    roles: str
    tap: Tap
    parts: list[Tensor] = field(default_factory=list)
    images: int = 0
    wanted: int = MOST_IMAGES

    def add(self, result: Tensor) -> None:
        if self.images >= self.wanted:
            return
        maps = as_maps(self.tap.values(result))
        if not self.parts:
            self.wanted = images_that_fit(maps.shape)
        taken = maps[: self.wanted - self.images].detach().cpu()
        self.parts.append(taken if taken.dtype == torch.float64 else taken.float())
        self.images += len(taken)


def activations(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather maps (N, C, P, Q) of every group, in eval mode, named by `key`."""
    probe = copy.deepcopy(model).to(source.device).eval().requires_grad_(False)
    batches = source.draw()
    inputs, _ = next(batches)
    flow = Flow(probe, structure, inputs)
    kept = _by_node(flow, structure.groups)

    def see(node: Node, result: Any) -> Any:
        for one in kept.get(node.name, ()):
            one.add(result)
        return result

    everything = [one for found in kept.values() for one in found]
    with torch.no_grad():
        flow.run(inputs, see)
        for inputs, _ in batches:
            if all(one.images >= one.wanted for one in everything):
                break
            flow.run(inputs, see)
    return {key(one.group, one.roles, one.tap.node): torch.cat(one.parts) for one in everything if one.parts}


def key(group: str, roles: str, node: str) -> str:
    """Return the name under which a tensor is kept."""
    return f"{group}|{roles}|{node}"


def maps_of(gathered: Gathered, group: str, where: Where) -> tuple[Tensor, ...]:
    """Return the maps (N, C, P, Q) of a group at each place where it is written, or read."""
    named = ((name.split("|"), maps) for name, maps in gathered.items())
    return tuple(maps for (owner, roles, _), maps in named if owner == group and where[0] in roles)


def as_maps(values: Tensor) -> Tensor:
    """(N, C, m, ...) -> (N, C, P, Q): the m indices of a unit join the first axis behind them."""
    n, c, m, *rest = values.shape
    if len(rest) <= 1:
        return values.reshape(n, c, m, -1)
    return values.reshape(n, c, m * rest[0], -1)


def images_that_fit(shape: Sequence[int]) -> int:
    """Return how many samples of maps (N, C, P, Q) are kept."""
    return int(np.clip(MOST_VALUES // max(1, int(np.prod(shape[1:]))), LEAST_IMAGES, MOST_IMAGES))


def _by_node(flow: Flow, groups: Sequence[Group]) -> dict[str, list[_Kept]]:
    found: dict[str, list[_Kept]] = {}
    for group in groups:
        for one in _of_group(flow, group):
            found.setdefault(one.tap.node, []).append(one)
    return found


def _of_group(flow: Flow, group: Group) -> Iterator[_Kept]:
    written = {tap.node: tap for tap in _spread(flow.written(group))}
    read = {tap.node: tap for tap in _spread(flow.read(group))}
    both: Mapping[str, Tap] = {**read, **written}
    for node, tap in both.items():
        yield _Kept(group.name, "w" * (node in written) + "r" * (node in read), tap)


def _spread(taps: tuple[Tap, ...]) -> list[Tap]:
    if len(taps) <= MOST_PLACES:
        return list(taps)
    return [taps[i] for i in np.linspace(0, len(taps) - 1, MOST_PLACES).round().astype(int)]
