"""Trace a model once: export, relate, plan, verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.errors import BadInput, TraceFailed
from autoprune.graph import block_proof, blocks, failures, plan, preparing, tracer
from autoprune.graph import verify as verification
from autoprune.graph.structure import Structure
from autoprune.graph.watching import Seen, watching


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    exclude: Sequence[str] = (),
    round_to: int = 1,
    verify: bool = True,
) -> Structure:
    """Return the structure of a model, every group proven on a copy.

    example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments, on the model's device.
    exclude: globs of module paths that nobody may touch. round_to: kept counts are multiples of it, or all.
    Raises TraceFailed, or BadInput for a wrong option. The model is not changed.
    """
    _check_options(exclude, round_to)
    with preparing.plainly(model):
        inputs = tracer.as_inputs(example_inputs)
        own = preparing.prepared(model)
        total, seen = _count(own, inputs)
        preparing.check_grown(own, model)
        preparing.share(own, model)
        with torch.random.fork_rng(preparing.devices(own)):
            traced = tracer.trace_relations(own, inputs)
        plan.lock_excluded(traced, exclude)
        plan.lock_unread(traced)
        structure = plan.build(traced, total / tracer.batch_size(inputs), round_to, exclude)
        structure = blocks.with_blocks(structure, traced, seen, tracer.batch_size(inputs), exclude)
        if not verify:
            return structure
        hints, program = plan.hints_by_group(traced, structure), traced.program
        # Labels and graph are as large as a small model, and nothing is read from them any more.
        del traced
        with torch.random.fork_rng(preparing.devices(own)), torch.no_grad():
            torch.manual_seed(0)
            bench = verification.bench_for(structure, own, inputs)
            # Blocks first: what they show of the fixed part of the cost does not depend on groups.
            structure = block_proof.proven(structure, bench, program)
        del program
        return verification.verified(structure, own, inputs, hints, bench)


def _check_options(exclude: Sequence[str], round_to: int) -> None:
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise BadInput(f"round_to must be a whole number of at least 1, got {round_to!r}")
    if isinstance(exclude, str) or not all(isinstance(glob, str) for glob in exclude):
        raise BadInput(f"exclude must be a sequence of globs, got {exclude!r}; write ({exclude!r},)")


def _count(model: nn.Module, inputs: tracer.Inputs) -> tuple[float, dict[str, Seen]]:
    """FLOPs of one forward pass, which also shows whether the example input fits, and what each module does in it."""
    counter = FlopCounterMode(display=False)
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(preparing.devices(model)),
            counter,
            watching(model, counter) as seen,
        ):
            model(*inputs[0], **inputs[1])
    except Exception as error:
        raise TraceFailed(
            f"the model does not run on the example input{failures.where(model, error)}: {failures.short(error)} "
            f"Give an example input of the right shapes, types and device."
        ) from error
    return float(counter.get_total_flops()), seen
