"""Prove a structure: cut copies at random and compare them with masked ones; freeze the groups that disagree.

Module code with sizes written into Python shows itself here. All groups are tried at once; only when that
fails are the culprits searched (see `search`). The model itself and the random state of the process are left
alone.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import crossing, failures, preparing, surgery, tracer
from autoprune.graph.bench import Bench, leaves, shapes
from autoprune.graph.freezing import without
from autoprune.graph.labels import Why
from autoprune.graph.lively import Lively
from autoprune.graph.parts import FrozenGroup, Group, IntArray
from autoprune.graph.rules.elementwise import NOT_ZERO
from autoprune.graph.search import Search
from autoprune.graph.structure import Structure

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
"""Largest allowed difference, relative to the largest output; float32 only where float64 cannot run."""

CHANCES = 8
"""Training passes of a model some of whose parameters no trace saw: layers that are dropped at random, say."""
_DIFFER = "cut and masked outputs differ"

Draw = Callable[[int, np.random.Generator], int]
"""How many units of a group of that size to keep."""


def bench_for(structure: Structure, own: nn.Module, inputs: tracer.Inputs) -> Bench:
    """Return what a structure of this model is proven on; the model itself is used up."""
    unread = any(item.operator == "unread" for item in structure.frozen)
    return Bench.build(own, inputs, CHANCES if unread else 1, own=True)


def verified(
    structure: Structure,
    model: nn.Module,
    inputs: tracer.Inputs,
    hints: Mapping[str, Why],
    bench: Bench | None = None,
) -> Structure:
    """Return the structure with every group that failed frozen, and the precision it was proven in.

    hints: group name -> what is known to be fixed in Python code about it. bench: where one was built already.
    """
    with torch.random.fork_rng(preparing.devices(model)), torch.no_grad():
        torch.manual_seed(0)
        bench = bench or bench_for(structure, copy.deepcopy(model), inputs)
        for draw in (_up_to_half, _to_one):
            structure, found = _repaired(structure, model, bench, draw, hints)
            structure = without(structure, _frozen(structure, found, hints))
    return dataclasses.replace(structure, verified=bench.precision)


def _repaired(
    structure: Structure, model: nn.Module, bench: Bench, draw: Draw, hints: Mapping[str, Why]
) -> tuple[Structure, dict[str, Why]]:
    """The structure with modules resized where that helps, and the groups that fail even so."""
    trial = _Trial(structure, bench, draw)
    if (problem := trial.problem(structure.names)) is None:
        return structure, {}
    likely = structure
    # All groups at once first: most often one kind of module is to blame, and this takes a few tries only.
    while problem is not None and (resized := _resized(likely, model, [problem], hints)) != likely.resized:
        likely = dataclasses.replace(likely, resized=resized)
        problem = _Trial(likely, bench, draw).problem(likely.names)
    if problem is None:
        return likely, {}
    found = _culprits(trial, model)
    resized = _resized(likely, model, list(found.values()), {name: hints[name] for name in found if name in hints})
    if resized != structure.resized:
        other = dataclasses.replace(structure, resized=resized)
        again = _culprits(_Trial(other, bench, draw), model)
        if len(again) < len(found):
            return other, again
    return structure, found


def _culprits(trial: _Trial, model: nn.Module) -> dict[str, Why]:
    structure = trial.structure
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds = {group.name: _kind(group, modules) for group in structure.groups}
    return Search(_families(structure), _under(structure, model), trial.problem, kinds).culprits()


def _kind(group: Group, modules: Mapping[str, nn.Module]) -> Hashable:
    """What groups have in common that fail alike: places, sizes, and the module with the one around it."""
    places = tuple((place.role, place.axis, place.indices.shape) for place in group.places)
    path = group.name.partition("#")[0]
    around = [modules[at] for at in (path, path.rpartition(".")[0]) if at in modules]
    return places, tuple((type(module), _flags(module)) for module in around)


def _flags(module: nn.Module) -> tuple[tuple[str, bool | str], ...]:
    return tuple(sorted((key, held) for key, held in vars(module).items() if isinstance(held, bool | str)))


def _resized(
    structure: Structure, model: nn.Module, problems: Sequence[Why], hints: Mapping[str, Why]
) -> tuple[str, ...]:
    """Modules whose sizes could follow the cut: the innermost around each failure that fixes any, or where
    nothing raised those that the hints name; and their like."""
    paths = {view.module for view in structure.views} | {part.module for part in structure.parts}
    paths.discard("")
    around = {_innermost(paths, why.module) for why in problems if why.module}
    if any(not why.module for why in problems) or not around - {""}:
        around |= {hint.module for hint in hints.values()} & paths
    failed = {type(model.get_submodule(path)) for path in around if path}
    more = {path for path in paths if type(model.get_submodule(path)) in failed}
    return tuple(sorted({*structure.resized, *more}))


def _innermost(paths: set[str], module: str) -> str:
    """The path itself or the next one above it that is among these; empty if none is."""
    while module and module not in paths:
        module = module.rpartition(".")[0]
    return module


def _families(structure: Structure) -> dict[str, str]:
    """Group name -> what repeated blocks have in common: the name without its numbers."""
    return {name: re.sub(r"\d+", "*", name) for name in structure.names}


def _under(structure: Structure, model: nn.Module) -> Callable[[str], set[str]]:
    """For the path of a module: the groups with a tensor below it or below another module of its class."""
    modules: dict[str, set[str]] = {}
    for group in structure.groups:
        for place in group.places:
            parts = place.tensor.split(".")
            for i in range(1, len(parts)):
                modules.setdefault(".".join(parts[:i]), set()).add(group.name)
    classes = {path: type(module) for path, module in model.named_modules()}

    def groups(path: str) -> set[str]:
        like = [other for other, kind in classes.items() if kind is classes.get(path) and other]
        return set().union(*(modules.get(other, set()) for other in like))

    return groups


def _up_to_half(size: int, generator: np.random.Generator) -> int:
    return size - int(generator.integers(1, max(2, size // 2 + 1)))


def _to_one(size: int, generator: np.random.Generator) -> int:
    """The narrowest model: shows code that treats an axis of length one differently."""
    return 1


def _frozen(structure: Structure, problems: Mapping[str, Why], hints: Mapping[str, Why]) -> dict[str, FrozenGroup]:
    frozen = {}
    for name, problem in problems.items():
        hint = hints.get(name)
        if hint and hint.reason == NOT_ZERO and _DIFFER not in problem.reason:
            hint = None
        reason = f"{hint.reason} ({problem.reason})" if hint else problem.reason
        why = hint or problem
        size = structure.group_sizes[structure.names.index(name)]
        frozen[name] = FrozenGroup(name, size, why.operator, why.module or problem.module, reason)
    return frozen


class _Trial:
    """Tries sets of groups; a group loses the same units in every set, so that a search finds what failed."""

    def __init__(self, structure: Structure, bench: Bench, draw: Draw) -> None:
        generator = np.random.default_rng(0)
        structure = dataclasses.replace(structure, round_to=1)
        self.structure = structure
        self.bench = bench
        self.narrowest = draw is _to_one
        self.keep = {
            name: np.sort(generator.choice(size, draw(size, generator), replace=False))
            for name, size in zip(structure.names, structure.group_sizes, strict=True)
        }
        self.apart = [] if self.narrowest else crossing.apart(structure)
        self.hidden = {name for members in self.apart for name in members if len(self.keep[name]) == 1}
        self._sharing = {name for members in self.apart for name in members}
        self._known: dict[frozenset[str], Why | None] = {}

    def problem(self, names: Sequence[str]) -> Why | None:
        """What goes wrong when these groups are cut and all others kept. The same question is answered once."""
        asked = frozenset(names)
        if asked not in self._known:
            self._known[asked] = self._problem(names)
        return self._known[asked]

    def _problem(self, names: Sequence[str]) -> Why | None:
        found = self._tried(names)
        if found is not None or len(names) < 2 or not self.hidden.intersection(names):
            return found
        # One part of one channel each: every order of them is the same. Next to a whole group a wrong order shows, if
        # no channel is dead.
        for members in self.apart:
            others = self._sharing - members
            if found := self._tried([name for name in names if name not in others], lively=True):
                return found
        return None

    def _tried(self, names: Sequence[str], lively: bool = False) -> Why | None:
        with Lively() if lively else contextlib.nullcontext():  # type: ignore[no-untyped-call]
            found, finite = self._compared(names)
        # Code that is written for positive numbers may divide by zero without them.
        return found if finite or not lively else self._tried(names)

    def _compared(self, names: Sequence[str]) -> tuple[Why | None, bool]:
        """What goes wrong, and whether the masked model gives numbers only."""
        keep = {name: self.keep[name] for name in names}
        model = self.structure.cut(self.bench.model, keep, dtype=self.bench.dtype)
        try:
            with FlopCounterMode(display=False) as counter:
                cut = self._run(model)
            saved = (self.bench.flops - counter.get_total_flops()) / tracer.batch_size(self.bench.inputs)
            # A copy goes before the next one comes: two at once are too much for large models.
            model = self.bench.model
            training = self._training_problem(keep)
            with self.bench.ready():
                surgery.zero(self.structure, model, keep)
                full = self._run(model)
            finite = all(bool(leaf.isfinite().all()) for leaf in full)
            return self._difference(cut, full) or self._cost_problem(saved, keep) or training, finite
        except Exception as error:
            why = Why("verification", failures.failing_module(model, error), failures.short(error))
            failures.forget(error)
            return why, True

    def _run(self, model: nn.Module) -> list[Tensor]:
        args, kwargs = self.bench.inputs
        return leaves(model(*args, **kwargs))

    def _cost_problem(self, saved: float, keep: Mapping[str, IntArray]) -> Why | None:
        # Savings are compared, because what is fixed may cost otherwise in this precision. In the narrowest model
        # torch takes other ways for axes of length one.
        if self.narrowest:
            return None
        cost = self.structure.total_flops
        told = cost(self.structure.sizes) - cost(self.structure.counts(keep))
        if abs(saved - told) <= 1e-6 * max(self.bench.flops, 1.0):
            return None
        return Why("verification", "", f"saves {saved:.0f} FLOPs, the plan says {told:.0f}")

    def _difference(self, cut: list[Tensor], masked: list[Tensor]) -> Why | None:
        if shapes(cut) != shapes(masked):
            return Why("verification", "", f"outputs of shape {shapes(cut)} after the cut, {shapes(masked)} before")
        for small, full in zip(cut, masked, strict=True):
            error = relative_error(small, full)
            if not error <= TOLERANCE[self.bench.precision]:
                return Why("verification", "", f"{_DIFFER} by {error:.1e} of the largest")
        return None

    def _training_problem(self, keep: Mapping[str, IntArray]) -> Why | None:
        # The narrowest model tells most and costs least.
        if not self.narrowest:
            return None

        def keeps_shapes(small: nn.Module, inputs: tracer.Inputs) -> bool:
            for chance in range(self.bench.chances):
                torch.manual_seed(chance)
                if shapes(small(*inputs[0], **inputs[1])) != self.bench.shapes:
                    return False
            return True

        return self.bench.training_problem(lambda: self.structure.cut(self.bench.model, keep), keeps_shapes)


def relative_error(small: Tensor, full: Tensor) -> float:
    """Largest difference, relative to the largest value of `full`; NaN if any value is not finite."""
    if not small.numel():
        return 0.0
    if not small.is_floating_point():
        return float((small != full).any())
    difference, largest = float((small - full).abs().max()), float(full.abs().max())
    return difference / largest if largest else difference
