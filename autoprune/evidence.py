"""What criteria look at: weights, gradients and, later, activations and Hessian products of one model.

Everything that several criteria need is gathered in one pass and kept, for the base model also on disk, so that all
trials and workers share it. Batches come from the training split in a fixed order; only `generator` depends on the
seed of a trial.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autoprune.data import Data
from autoprune.data.split import isolated_random_state
from autoprune.errors import LossNotFinite, NotApplicable
from autoprune.files import replacing
from autoprune.graph import Group, Place, Role, Structure
from autoprune.seeds import derive_seed
from autoprune.tasks import Task, forward

_BATCH_ORDER_SEED = 0
Gathered = Mapping[str, Tensor]


class Evidence(StrEnum):
    """Kinds of evidence that a criterion can need."""

    WEIGHTS = "weights"
    GATE_GRADIENTS = "gate_gradients"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where evidence comes from: batches of training data and the loss on them."""

    data: Data
    task: Task
    batches: int
    batch_size: int
    device: torch.device

    @property
    def samples(self) -> int:
        """Samples that one gathering sends forward and backward."""
        there = len(self.data.train)
        whole_batches = there // self.batch_size * self.batch_size
        return min(self.batches * self.batch_size, whole_batches or there)


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
        self._gathered: dict[Evidence, Gathered] = {}
        self.trained_samples = 0

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
        if not group.places_with(Role.INPUT):
            raise NotApplicable(f"group {group.name!r} has no gate gradient: no convolution or linear layer reads it")
        return self.gather(Evidence.GATE_GRADIENTS)[group.name]

    def generator(self, label: str) -> torch.Generator:
        """Return a generator on the CPU that depends on the trial's seed and a label only."""
        return torch.Generator().manual_seed(derive_seed(self._seed, label))

    def gather(self, kind: Evidence) -> Gathered:
        """Return one kind of evidence by group name: from memory, from the cache, or gathered now."""
        if kind not in self._gathered:
            found = self._load(kind)
            if found is None:
                found = _GATHER[kind](self._model, self._structure, self._source)
                self.trained_samples += self._source.samples
                self._save(kind, found)
            self._gathered[kind] = found
        return self._gathered[kind]

    def prepare(self, kinds: frozenset[Evidence]) -> None:
        """Gather all that is needed."""
        for kind in sorted(kinds - {Evidence.WEIGHTS}):
            self.gather(kind)

    def _stamp(self) -> str:
        source = self._source
        return f"{self._fingerprint}/{source.data.fingerprint}/{source.batches}x{source.batch_size}"

    def _file(self, kind: Evidence) -> Path | None:
        return None if self._cache is None else self._cache / f"{kind}.safetensors"

    def _load(self, kind: Evidence) -> Gathered | None:
        path = self._file(kind)
        if path is None or not path.exists():
            return None
        with safe_open(path, framework="pt", device=str(self._source.device)) as file:
            if (file.metadata() or {}).get("stamp") != self._stamp():
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    def _save(self, kind: Evidence, gathered: Gathered) -> None:
        path = self._file(kind)
        if path is None:
            return
        with replacing(path) as temporary:
            tensors = {name: value.cpu().contiguous() for name, value in gathered.items()}
            save_file(tensors, temporary, metadata={"stamp": self._stamp()})


def mean_over_producers(
    group: Group, evidence: ModelEvidence, score_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return (C,): the mean over the group's producing layers of `score_of` their weights (C, K).

    Layers of one residual stream differ in scale by their fan-in, so every layer's scores are first brought to the
    common mean; a single layer's scores are returned as they are. Raises NotApplicable without producing weights.
    """
    places = group.places_with(Role.OUTPUT) or group.places_with(Role.DEPTHWISE)
    if not places:
        raise NotApplicable(f"group {group.name!r} has no producing weights to score")
    scores_LC = torch.stack([score_of(evidence.slices(p)) for p in places])
    if len(places) == 1:
        return scores_LC[0]
    means_L1 = scores_LC.mean(dim=1, keepdim=True)
    safe_L1 = torch.where(means_L1 > 0, means_L1, torch.ones_like(means_L1))
    return (scores_LC / safe_L1).mean(dim=0) * means_L1.mean()


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def _gate_gradients(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather dL/dg in training mode, on a copy, so that running statistics of the model stay as they are."""
    probe = copy.deepcopy(model).to(source.device).train()
    parameters = dict(probe.named_parameters(remove_duplicate=False))
    readers = {g.name: g.places_with(Role.INPUT) for g in structure.groups}
    axes = sorted({(p.tensor, p.axis) for places in readers.values() for p in places})
    rows: dict[str, list[Tensor]] = defaultdict(list)
    with isolated_random_state(_BATCH_ORDER_SEED):
        for inputs, targets in source.data.train.batches(
            source.batch_size, seed=_BATCH_ORDER_SEED, limit=source.samples, device=source.device
        ):
            probe.zero_grad(set_to_none=True)
            loss = source.task.loss(forward(probe, inputs), targets)
            if not bool(torch.isfinite(loss)):
                raise LossNotFinite(f"the base model's loss on a training batch is {float(loss)}")
            loss.backward()  # type: ignore[no-untyped-call]
            product = {(t, a): _weight_times_gradient(parameters[t], a) for t, a in axes}
            for name, places in readers.items():
                parts = [_per_unit(product[p.tensor, p.axis], p) for p in places]
                if parts:
                    rows[name].append(torch.stack(parts).sum(dim=0))
    return {name: torch.stack(batches) for name, batches in rows.items()}


def _weight_times_gradient(parameter: Tensor, axis: int) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.shape[axis], dtype=torch.float64, device=parameter.device)
    others = [a for a in range(parameter.ndim) if a != axis]
    product = parameter.detach().double() * parameter.grad.double()
    return product.sum(dim=others) if others else product


def _per_unit(values: Tensor, place: Place) -> Tensor:
    indices_CM = torch.tensor(place.indices, device=values.device)
    return values[indices_CM].sum(dim=1)


_GATHER: Mapping[Evidence, Callable[[nn.Module, Structure, Source], Gathered]] = {
    Evidence.GATE_GRADIENTS: _gate_gradients,
}
