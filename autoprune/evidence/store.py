"""What criteria look at: weights, gradients and, later, activations and Hessian products of one model.

Everything that several criteria need is gathered in one pass and kept, for the base model also on disk, so that all
trials and workers share it. Batches come from the training split in a fixed order; only `generator` depends on the
seed of a trial.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autoprune.errors import NotApplicable
from autoprune.evidence.activations import Where, activations, maps_of
from autoprune.evidence.cut_losses import CutLosses
from autoprune.evidence.example_gate_gradients import example_gate_gradients
from autoprune.evidence.exemplars import exemplar_betas
from autoprune.evidence.filter_gradients import filter_gradients
from autoprune.evidence.gate_curvature import gate_curvature
from autoprune.evidence.gate_gradients import gate_gradients
from autoprune.evidence.hessian_traces import hessian_traces
from autoprune.evidence.input_moments import input_moments
from autoprune.evidence.kinds import OF_A_RECIPE, Evidence, Gathered, Source
from autoprune.evidence.kronecker import kronecker
from autoprune.evidence.next_layer import next_layer
from autoprune.evidence.propagation import FinalScores, Sweep, final_responses, propagate, units_of
from autoprune.evidence.readings import Reading, readings, readings_of
from autoprune.evidence.reinitialisation import reinitialisation_drops
from autoprune.evidence.unit_curvature import gauss_newton, unit_curvature
from autoprune.files import replacing
from autoprune.graph import Group, Place, Role, Structure
from autoprune.seeds import derive_seed


class ModelEvidence:
    """Evidence about one model.

    `cache` is a folder shared by everybody who looks at the same model; its files carry `fingerprint`, and a file of
    another model is gathered anew.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        source: Source,
        *,
        seed: int,
        cache: Path | None = None,
        fingerprint: str = "",
    ) -> None:
        self._model = model
        self._structure = structure
        self._source = source
        self._seed = seed
        self._cache = cache
        self._fingerprint = fingerprint
        self._tensors = _named_tensors(model)
        self._gathered: dict[str, Gathered] = {}
        self._remembered: dict[str, Tensor] = {}
        self._propagated: dict[str, Mapping[str, Tensor]] = {}
        file = None if cache is None else cache / f"{Evidence.GROUP_SENSITIVITIES}.jsonl"
        self.cut_losses = CutLosses(file, stamp=self._stamp)

    @property
    def structure(self) -> Structure:
        """The structure of the model looked at."""
        return self._structure

    def with_seed(self, seed: int) -> ModelEvidence:
        """Return the same evidence for another trial; what was gathered is shared."""
        other = copy.copy(self)
        other._seed = seed
        return other

    def slices(self, place: Place) -> Tensor:
        """Return the values (C, K) that belong to each unit at one place, float64, K entries flattened."""
        values = self._tensors[place.tensor].detach().double().movedim(place.axis, 0)
        indices_CM = torch.tensor(place.indices, device=values.device)
        return values[indices_CM].flatten(1)

    def gate_gradients(self, group: Group) -> Tensor:
        """Return dL/dg (B, C): the gradient of every mini-batch's mean loss with respect to a gate of one per unit.

        The gate multiplies the unit where it is read. Raises NotApplicable when no layer with weights reads it.
        """
        return self._of_gates(Evidence.GATE_GRADIENTS, group)

    def example_gate_gradients(self, group: Group) -> Tensor:
        """Return dL_n/dg (N, C): the gradient of every sample's own loss, in eval mode, by the same gates.

        Raises NotApplicable when no layer with weights reads the group.
        """
        return self._of_gates(Evidence.EXAMPLE_GATE_GRADIENTS, group)

    def gate_curvature(self, group: Group) -> tuple[Tensor, Tensor]:
        """Return dL/dg and d2L/dg2 (B, C) of every mini-batch's mean loss by the same gates, one unit at a time.

        Raises NotApplicable when no layer with weights reads the group.
        """
        gradient_BC, curvature_BC = self._of_gates(Evidence.GATE_CURVATURE, group)
        return gradient_BC, curvature_BC

    def _of_gates(self, kind: Evidence, group: Group) -> Tensor:
        if not group.places_with(Role.INPUT):
            raise NotApplicable(f"group {group.name!r} has no gate gradient: no convolution or linear layer reads it")
        return self.gather(kind)[group.name]

    def input_moments(self, layer: str) -> tuple[Tensor, Tensor] | None:
        """Return (D,) mean and (D, D) second moment of what a layer reads; None for a layer that has none."""
        found = self.gather(Evidence.INPUT_MOMENTS)
        if f"{layer}.mean" not in found:
            return None
        return found[f"{layer}.mean"], found[f"{layer}.second"]

    def hessian_trace(self, place: Place) -> Tensor:
        """Return (C,): the trace of the loss's Hessian in the weights of each unit at a place that produces it."""
        rows = self.gather(Evidence.HESSIAN_TRACES)[place.tensor]
        return rows[torch.tensor(place.indices, device=rows.device)].sum(dim=1)

    def unit_curvature(self, group: Group, *, norms: bool) -> tuple[Tensor, Tensor]:
        """Return theta . g and theta . H . (all units' theta), (C,) each, theta the weights that produce a unit.

        norms: whether the scale and shift of norms belong to theta.
        """
        gradient_C, product_C = self.gather(Evidence.UNIT_CURVATURE)[f"{group.name}{'+norms' if norms else ''}"]
        return gradient_C, product_C

    def exemplar_betas(self, group: Group) -> Tensor:
        """Return (C,): the largest beta at which affinity propagation keeps each unit of its group.

        Raises NotApplicable when no weights produce the group.
        """
        found = self.gather(Evidence.EXEMPLARS)
        if group.name not in found:
            raise NotApplicable(f"group {group.name!r} has no exemplars: no weights produce its units")
        return found[group.name]

    def gauss_newton(self) -> tuple[Tensor, Tensor]:
        """Return theta_s . g (U,) and theta_s . R . theta_t (U, U) of all units in the structure's order.

        R is the Gauss-Newton Hessian. Raises NotApplicable for too many units.
        """
        found = self.gather(Evidence.GAUSS_NEWTON)
        return found["gradient"], found["matrix"]

    def readings(self, group: Group) -> tuple[Reading, ...]:
        """Return what layers read of a group by the batch norms behind it; empty without batch norm."""
        return readings_of(self.gather(Evidence.READINGS), self._structure, group)

    def activations(self, group: Group, where: Where) -> tuple[Tensor, ...]:
        """Return maps (N, C, P, Q), one tensor for each place where the group is written, or read.

        written: behind each producer's norm and activation, before any addition; read: what readers read, before any
        pooling, behind the additions of a residual stream. Read falls back to written, and the other way around.
        Raises NotApplicable when neither is known.
        """
        gathered = self.gather(Evidence.ACTIVATIONS)
        other: Where = "read" if where == "written" else "written"
        found = maps_of(gathered, group.name, where) or maps_of(gathered, group.name, other)
        if not found:
            raise NotApplicable(f"group {group.name!r} has no activations: no layer that writes or reads it is known")
        return found

    def next_layer(self, group: Group) -> dict[str, Tensor]:
        """Return, by the weight that reads the group, the second moments (C, C) of what its units add to outputs."""
        gathered = self.gather(Evidence.NEXT_LAYER)
        weights = dict.fromkeys(p.tensor for p in group.places_with(Role.INPUT))
        return {w: gathered[f"{group.name}|{w}"] for w in weights if f"{group.name}|{w}" in gathered}

    def final_responses(self, weight: str) -> Tensor:
        """Return (N, D): what the last layer with this weight reads, one row per sample, positions averaged."""
        return self.gather(Evidence.FINAL_RESPONSES)[weight]

    def filter_gradients(self, group: Group) -> Tensor:
        """Return K (C, C), the second moments of the units' weight gradients over samples.

        Raises NotApplicable for a group with a producer that it is not gathered for.
        """
        gathered = self.gather(Evidence.FILTER_GRADIENTS)
        if group.name not in gathered:
            raise NotApplicable(
                f"group {group.name!r} has no gradients by sample: they need linear layers and one- or two-dimensional "
                "convolutions as producers"
            )
        return gathered[group.name]

    def curvature(self, layer: str) -> tuple[Tensor, Tensor] | None:
        """Return (M, M) and (N, N), the factors of a layer's curvature (`autoprune.curvature`); None without them."""
        outputs_NN, moments = self.gather(Evidence.KRONECKER).get(f"{layer}.outputs"), self.input_moments(layer)
        if outputs_NN is None or moments is None:
            return None
        mean_D, second_DD = moments
        known = next(one for one in self._structure.layers if one.name == layer)
        positions = sum(math.prod(call.out_positions) for call in known.calls)
        if known.bias is not None:
            second_DD = torch.cat([second_DD, mean_D[None]])
            second_DD = torch.cat([second_DD, torch.cat([mean_D, mean_D.new_ones(1)])[:, None]], dim=1)
        return positions * second_DD, outputs_NN

    def removal_changes(self, group: Group) -> tuple[Tensor, float]:
        """Return (C,) how the mean loss changes, to second order, without each unit, and that loss.

        Raises NotApplicable for a group that something else than a convolution or linear layer reads.
        """
        found = self.gather(Evidence.KRONECKER)
        if f"{group.name}.change" not in found:
            raise NotApplicable(f"group {group.name!r} has no change of loss: no convolution or linear layer reads it")
        return found[f"{group.name}.change"], float(found["loss"])

    @property
    def samples(self) -> int:
        """Training samples that evidence is taken from."""
        return self._source.samples

    def propagated(self, label: str, final: FinalScores, sweep: Sweep) -> Mapping[str, Tensor]:
        """Return by group (C,) the importance sent backwards from the final responses; `label` names the choices.

        Raises NotApplicable for an operator that no score can pass.
        """
        if label not in self._propagated:
            inputs, _ = next(self._source.draw())
            found = propagate(self._model, self._structure, inputs, final, sweep)
            self._propagated[label] = {name: units_of(scores) for name, scores in found.items() if scores}
        return self._propagated[label]

    def remember(self, label: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` found the first time that it was asked for under this label: for costly scores."""
        if label not in self._remembered:
            self._remembered[label] = compute()
        return self._remembered[label]

    def weight(self, name: str) -> Tensor:
        """Return a parameter or buffer of the model by name."""
        return self._tensors[name].detach()

    def generator(self, label: str) -> torch.Generator:
        """Return a generator on the CPU that depends on the trial's seed and a label only."""
        return torch.Generator().manual_seed(derive_seed(self._seed, label))

    def gather(self, kind: Evidence) -> Gathered:
        """Return one kind of evidence by group name: from memory, from the cache, or gathered now."""
        return self._found(kind, lambda: _GATHER[kind](self._model, self._structure, self._source))

    def reinitialisation_drops(self, instance: int, samples: int) -> Gathered:
        """Return by block the accuracy (0..1) lost on held-out samples when a random instance's state replaces its own.

        instance: number of the random instance, the same for all trials. Measured for all blocks at once.
        """
        names = [plan.name for plan in self._structure.block_plans]
        return self._found(
            f"reinitialisation_{instance}_{samples}",
            lambda: reinitialisation_drops(self._model, names, self._source, instance, samples),
        )

    def without_blocks(self, blocks: Sequence[str]) -> ModelEvidence:
        """Return evidence about the model without these blocks, gathered anew where it is asked for, and not cached."""
        model = self._structure.skip_blocks(self._model, blocks)
        return ModelEvidence(model, self._structure.without_blocks(blocks), self._source, seed=self._seed)

    def _found(self, label: str, gather: Callable[[], Gathered]) -> Gathered:
        if label not in self._gathered:
            found = self._load(label)
            if found is None:
                found = gather()
                self._save(label, found)
            self._gathered[label] = found
        return self._gathered[label]

    def prepare(self, kinds: frozenset[Evidence]) -> dict[Evidence, str]:
        """Gather all that is needed, but for what depends on the recipe. Return why, for kinds that do not apply."""
        missing: dict[Evidence, str] = {}
        for kind in sorted(kinds - {Evidence.WEIGHTS} - OF_A_RECIPE):
            try:
                self.gather(kind)
            except NotApplicable as reason:
                missing[kind] = str(reason)
        return missing

    def _stamp(self) -> str:
        source = self._source
        return f"{self._fingerprint}/{source.data.fingerprint}/{source.batches}x{source.batch_size}"

    def _file(self, label: str) -> Path | None:
        return None if self._cache is None else self._cache / f"{label}.safetensors"

    def _load(self, label: str) -> Gathered | None:
        path = self._file(label)
        if path is None or not path.exists():
            return None
        with safe_open(path, framework="pt", device=str(self._source.device)) as file:
            if (file.metadata() or {}).get("stamp") != self._stamp():
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    def _save(self, label: str, gathered: Gathered) -> None:
        path = self._file(label)
        if path is None:
            return
        with replacing(path) as temporary:
            tensors = {name: value.cpu().contiguous() for name, value in gathered.items()}
            save_file(tensors, temporary, metadata={"stamp": self._stamp()})


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


_GATHER: Mapping[Evidence, Callable[[nn.Module, Structure, Source], Gathered]] = {
    Evidence.EXAMPLE_GATE_GRADIENTS: example_gate_gradients,
    Evidence.GATE_CURVATURE: gate_curvature,
    Evidence.GATE_GRADIENTS: gate_gradients,
    Evidence.HESSIAN_TRACES: hessian_traces,
    Evidence.INPUT_MOMENTS: input_moments,
    Evidence.EXEMPLARS: exemplar_betas,
    Evidence.UNIT_CURVATURE: unit_curvature,
    Evidence.GAUSS_NEWTON: gauss_newton,
    Evidence.READINGS: readings,
    Evidence.ACTIVATIONS: activations,
    Evidence.NEXT_LAYER: next_layer,
    Evidence.FINAL_RESPONSES: final_responses,
    Evidence.FILTER_GRADIENTS: filter_gradients,
    Evidence.KRONECKER: kronecker,
}
