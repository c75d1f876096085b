"""A penalty that grows on the units that are to go, until nothing of them is left. Wang et al., ICLR 2021.

    gradient of w += reg_C[c] * w    for the producing weights w of unit c, the gradient of reg / 2 * w ** 2

arXiv 2012.09243. Only weights of convolutions and linear layers are penalised, never biases or norms. A unit's size is
the mean magnitude of the weights that produce it; `ratio` is the mean size of the units that stay over that of those
that go, smoothed over updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autoprune.graph import Group, Role, Structure
from autoprune.regularisers._base import Choose
from autoprune.training import StepHook

_SMOOTHING = 0.9


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A first phase in which all units are penalised alike, before those to go are chosen."""

    growth: float
    ceiling: float
    recover: float


@dataclass
class Penalised:
    """One group: its producing weights, what goes, and the penalty. Changes while training."""

    producers: list[tuple[nn.Parameter, int, Tensor]]
    gone_C: Tensor  # noqa: N815
    reg_C: Tensor  # noqa: N815
    ratio: float | None = None
    updates: int = 0
    finished: bool = False

    def sizes(self) -> Tensor:
        """Return (C,) the mean magnitude of each unit's weights."""
        total_C, count = torch.zeros_like(self.reg_C), 0
        for parameter, axis, indices_CM in self.producers:
            rows = parameter.detach().double().movedim(axis, 0)[indices_CM].flatten(1)
            total_C, count = total_C + rows.abs().sum(dim=1), count + rows.shape[1]
        return total_C / count

    def track(self) -> None:
        """Follow how much larger the units that stay are."""
        sizes_C = self.sizes()
        small = float(sizes_C[self.gone_C].mean())
        now = float(sizes_C[~self.gone_C].mean()) / small if small > 0 else math.inf
        self.ratio = now if self.ratio is None else _SMOOTHING * self.ratio + (1 - _SMOOTHING) * now

    def add_penalty(self) -> None:
        """Add the penalty's gradient to the weights' gradients."""
        for parameter, axis, indices_CM in self.producers:
            if parameter.grad is None or not parameter.requires_grad:
                continue
            reg_N = torch.zeros(parameter.shape[axis], dtype=parameter.dtype, device=parameter.device)
            reg_N[indices_CM] = self.reg_C.to(parameter.dtype)[:, None]
            shape = [-1 if a == axis else 1 for a in range(parameter.ndim)]
            parameter.grad.add_(reg_N.view(shape) * parameter.detach())


@dataclass
class Growth(StepHook):
    """The penalties of all groups over a training.

    Groups of which nothing goes are finished from the first update on and have no penalty. What finished keeps its
    penalty; when everything has, `stabilise` more steps follow.
    """

    model: nn.Module
    structure: Structure
    choose: Choose
    growth: float
    every: int
    ceiling: float
    ratio_limit: float
    stabilise: int
    pick: Pick | None = None
    step: int = 0
    done_at: int | None = None
    groups: dict[str, Penalised] = field(default_factory=dict)
    picking: bool = False

    def __post_init__(self) -> None:
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        keep = self.choose(self.model)
        for group in self.structure.groups:
            gone_C = _gone(group, keep)
            producers = [
                (parameters[p.tensor], p.axis, torch.tensor(p.indices, device=parameters[p.tensor].device))
                for p in group.places_with(Role.OUTPUT, Role.DEPTHWISE)
            ]
            if producers and bool(gone_C.any()):
                device = producers[0][0].device
                reg_C = torch.zeros(group.size, dtype=torch.float64, device=device)
                self.groups[group.name] = Penalised(producers, gone_C.to(device), reg_C)
        self.picking = self.pick is not None

    @property
    def most_steps(self) -> int:
        """The steps that a training takes at most: the ratios may end it earlier."""
        updates = math.floor(self.ceiling / self.growth) + 2
        if self.pick is not None:
            updates += math.ceil(self.pick.ceiling / self.pick.growth) + 1
        return updates * self.every + self.stabilise

    def before_step(self, step: int) -> bool:
        """Update the penalties when it is time, then add them to the gradients."""
        if step % self.every == 0 and self.done_at is None:
            self._update()
        for group in self.groups.values():
            group.add_penalty()
        self.step = step + 1
        return False

    def enough(self) -> bool:
        """Return whether all groups are finished and have settled."""
        return self.done_at is not None and self.step - self.done_at >= self.stabilise

    def _update(self) -> None:
        waiting = [group for group in self.groups.values() if not group.finished]
        if self.picking:
            self._grow_all(waiting)
        else:
            for group in waiting:
                self._push(group)
            for group in waiting:
                group.finished = self._is_finished(group)
        if all(group.finished for group in self.groups.values()):
            self.done_at = self.step

    def _grow_all(self, waiting: list[Penalised]) -> None:
        assert self.pick is not None
        for group in waiting:
            group.updates += 1
            # a product, not a running sum, whose rounding could move the last update by one
            group.reg_C.fill_(group.updates * self.pick.growth)
            smallest = group.sizes().argsort(stable=True)[: int(group.gone_C.sum())]
            group.gone_C = torch.zeros_like(group.gone_C).index_fill_(0, smallest, True)
            group.track()
        if any(float(group.reg_C.max()) >= self.pick.ceiling for group in waiting):
            self._choose_now()

    def _choose_now(self) -> None:
        keep = self.choose(self.model)
        for name, group in self.groups.items():
            group.gone_C = _gone(self.structure.group(name), keep).to(group.gone_C.device)
            group.finished = not bool(group.gone_C.any())
            group.updates = 0
        self.picking = False

    def _push(self, group: Penalised) -> None:
        group.updates += 1
        begun = 0.0 if self.pick is None else self._picked()
        stays = 0.0 if self.pick is None else self.pick.recover
        pushed = begun + group.updates * self.growth
        group.reg_C = torch.where(group.gone_C, pushed, torch.full_like(group.reg_C, stays))
        group.track()

    def _picked(self) -> float:
        """Return the penalty that the first phase ended with."""
        assert self.pick is not None
        return math.ceil(self.pick.ceiling / self.pick.growth - 1e-9) * self.pick.growth

    def _is_finished(self, group: Penalised) -> bool:
        if float(group.reg_C.max()) > self.ceiling:
            return True
        # the first kind waits for all groups, the second lets each end by itself
        deciding = [group] if self.pick is not None else list(self.groups.values())
        return all(one.ratio is not None and one.ratio >= self.ratio_limit for one in deciding)


def _gone(group: Group, keep: Mapping[str, list[int]]) -> Tensor:
    gone_C = torch.zeros(group.size, dtype=torch.bool)
    if group.name in keep:
        gone_C[:] = True
        gone_C[keep[group.name]] = False
    return gone_C
