"""Prove that blocks can be skipped: the model with stand-ins equals the traced one whose branches are zeroed.

The two come about independently: stand-ins are put into the modules of a copy, which then runs its own Python code;
branches are zeroed in the exported graph, operator by operator, with all blocks still in it. There every block must
also give back its input to the last bit. Forward, training and backward passes have to work, and the FLOPs saved have
to be those of the plan. All blocks are tried at once and half of them; culprits are searched only when that fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode

from autoprune.errors import TraceFailed
from autoprune.graph import failures, rehearsal, skipping, surgery, tracer
from autoprune.graph.bench import Bench, leaves, plain, shapes
from autoprune.graph.flow import Flow
from autoprune.graph.labels import Why
from autoprune.graph.liveness import unneeded
from autoprune.graph.parts import FixedBlock, within
from autoprune.graph.residuals import Reader
from autoprune.graph.search import Search
from autoprune.graph.structure import Structure
from autoprune.graph.verify import TOLERANCE, relative_error


def proven(structure: Structure, bench: Bench, program: torch.export.ExportedProgram) -> Structure:
    """Return the structure with only those blocks that proved to be skippable, the others with the reason.

    program: the traced forward pass.
    """
    names = [plan.name for plan in structure.block_plans]
    if not names:
        return structure
    given = bench.inputs[1] or bench.inputs[0]
    trial = _Trial(structure, bench, Flow(bench.model, structure, given, program))
    found: dict[str, Why] = {}
    if trial.problem(names) is not None or trial.problem(_half(names), training=False) is not None:
        with contextlib.suppress(TraceFailed), bench.ready():
            # The trace may hold types of the model's own precision: one of the copy tells, where there is one.
            trial = _Trial(structure, bench, Flow(bench.model, structure, given))
        families = {name: re.sub(r"\d+", "*", name) for name in names}
        found = Search(families, _below(names), trial.problem).culprits()
    left = [name for name in names if name not in found]
    if len(left) > 1 and (problem := trial.problem(_half(left), training=False)) is not None:
        found |= dict.fromkeys(left, problem)
    fixed = tuple(FixedBlock(name, why.reason) for name, why in found.items())
    return dataclasses.replace(
        structure,
        block_plans=tuple(plan for plan in structure.block_plans if plan.name not in found),
        fixed_blocks=(*structure.fixed_blocks, *fixed),
    )


def _half(names: Sequence[str]) -> list[str]:
    generator = np.random.default_rng(0)
    chosen = set(generator.choice(len(names), len(names) // 2, replace=False).tolist())
    return [name for i, name in enumerate(names) if i in chosen]


def _below(names: Sequence[str]) -> Callable[[str], set[str]]:
    """For the path of a module: the blocks in it, or in which it is."""
    return lambda path: {name for name in names if within(path, name) or within(name, path)}


class _Trial:
    """Skips sets of blocks and says what goes wrong."""

    def __init__(self, structure: Structure, bench: Bench, flow: Flow) -> None:
        self.structure, self.bench, self.flow = structure, bench, flow
        self.given = bench.inputs[1] or bench.inputs[0]
        self._known: dict[tuple[frozenset[str], bool], Why | None] = {}
        self.blocks = {item.path: item for item in Reader(flow.program).residuals() if not item.problem}

    def problem(self, names: Sequence[str], training: bool = True) -> Why | None:
        """What goes wrong when these blocks are skipped and all others kept. training: whether it is tried too.

        The same question is answered once.
        """
        asked = frozenset(names), training
        if names and asked not in self._known:
            self._known[asked] = self._problem(names, training)
        return self._known.get(asked)

    def _problem(self, names: Sequence[str], training: bool) -> Why | None:
        less = self.bench.model
        try:
            with self.bench.ready():
                less = skipping.copied_without(self.structure, self.bench.model, names, self.bench.shared())
                with FlopCounterMode(display=False) as counter:
                    skipped = self._run(less)
                if (problem := self._difference(skipped, names)) is not None:
                    return problem
            less = self.bench.model
            problem = self._cost_problem(float(counter.get_total_flops()), names)
            return problem or (self._training_problem(names) if training else None)
        except Exception as error:
            why = Why("verification", failures.failing_module(less, error), failures.short(error))
            failures.forget(error)
            return why

    def _run(self, model: nn.Module) -> list[Tensor]:
        args, kwargs = self.bench.inputs
        return leaves(model(*args, **kwargs))

    def _difference(self, skipped: list[Tensor], names: Sequence[str]) -> Why | None:
        zeroed, changed = self._zeroed(names)
        if changed:
            return Why("verification", changed, f"with its branches at zero, {changed} changes its input")
        if [s.shape for s in skipped] != [z.shape for z in zeroed]:
            return Why("verification", "", "outputs of other shapes without it")
        for one, other in zip(skipped, zeroed, strict=True):
            error = relative_error(one, other)
            if not error <= TOLERANCE[self.bench.precision]:
                return Why("verification", "", f"skipped and zeroed outputs differ by {error:.1e} of the largest")
        return None

    def _zeroed(self, names: Sequence[str]) -> tuple[list[Tensor], str]:
        """Outputs of the traced model with these blocks' branches at zero, and the first block that is no identity."""
        if missing := [name for name in names if name not in self.blocks]:
            return [], missing[0]
        chosen = [self.blocks[name] for name in names]
        branches = {branch for item in chosen for branch in item.branches}
        exits = {item.exit: item for item in chosen}
        left = Counter(item.entry for item in chosen)
        entries: dict[Node, Tensor] = {}
        changed: list[str] = []

        def see(node: Node, result: Any) -> Any:
            if node in exits:
                item = exits[node]
                assert item.entry is not None
                if not torch.equal(result, entries[item.entry]):
                    changed.append(item.path)
                left[item.entry] -= 1
                if not left[item.entry]:
                    del entries[item.entry]
            if node in branches:
                result = _zeros(node, self.bench.dtype) if result is None else torch.zeros_like(result)
            if node in left:
                # a copy: what comes behind may write into it
                entries[node] = result.clone()
            return result

        for node, value in zip(self.flow.nodes, self.flow.arguments(self.given), strict=False):
            if node in left:
                entries[node] = value.clone()
        outputs = self.flow.run(self.given, see, unneeded(self.flow.nodes, branches))
        return leaves(outputs), (changed or [""])[0]

    def _cost_problem(self, counted: float, names: Sequence[str]) -> Why | None:
        saved = (self.bench.flops - counted) / tracer.batch_size(self.bench.inputs)
        less = self.structure.without_blocks(names)
        told = self.structure.total_flops(self.structure.sizes) - less.total_flops(less.sizes)
        slack = 1e-6 * max(self.bench.flops, 1.0)
        if abs(saved - told) <= slack:
            return None
        # Torch may go other ways in float64, as it does in recurrent layers. A plan counts those of the model's types.
        if abs(self._plain_flops(names) - less.total_flops(less.sizes)) <= slack:
            return None
        return Why("verification", "", f"saves {saved:.0f} FLOPs, the plan says {told:.0f}")

    def _plain_flops(self, names: Sequence[str]) -> float:
        less = plain(skipping.copied_without(self.structure, self.bench.model, names, {}))
        args, kwargs = self.bench.plain
        with FlopCounterMode(display=False) as counter:
            less(*args, **kwargs)
        return float(counter.get_total_flops()) / tracer.batch_size(self.bench.inputs)

    def _training_problem(self, names: Sequence[str]) -> Why | None:
        def keeps_shapes(less: nn.Module, inputs: tracer.Inputs) -> bool:
            less.requires_grad_(True)
            found: list[tuple[int, ...]] = []

            def forward() -> list[Tensor]:
                outputs = leaves(less(*inputs[0], **inputs[1]))
                found.extend(shapes(outputs))
                return outputs

            rehearsal.backward(less, forward)
            return bool(found == self.bench.shapes)

        return self.bench.training_problem(
            lambda: skipping.copied_without(self.structure, self.bench.model, names, {}), keeps_shapes
        )


def _zeros(node: Node, dtype: torch.dtype) -> Tensor:
    """What stands for the result of an operator that did not run, in a model of that precision."""
    value = node.meta["val"]
    return torch.zeros(tuple(value.shape), dtype=surgery.widened(value, dtype), device=value.device)
