"""Pruning while training towards flat minima. Ebrahimi and Klabjan, IJCNN 2023, arXiv 2111.08577.

    loss + mu * sum over layers l of rho_l,    rho_l = (u_l^T A_l u_l) (v_l^T G_l v_l)

rho_l is the spectral radius of layer l's curvature A (x) G (`autoprune.curvature`), differentiated through the factors
of the batch with their top eigenvectors u, v held constant; `penalty: max` takes the largest rho_l only. It is added
every `flat_every` steps from the share `flat_start` of the training on, but for the last `settle`, and those steps clip
their gradient to a norm of 5. mu = mu_rel * loss / penalty at the first use.

At E events, one every `event_every` epochs from `prune_start` to `prune_end`, units go: event e removes the part
1 - (1 - e / E) ** 3 of the cost that the recipe's cut removes, chosen by the recipe's criterion and allocation on the
model as it is then. What goes is zero from there on, with its gradients and the optimiser's momentum, so that training
goes on as if it were cut, in one learning-rate cycle; the cut after the training takes exactly what is zero.

Only the paper's abstract was available: neurons, no pretrained network, the spectral radius and Kronecker factors come
first-hand, the algorithm is our reading. Events meet a share of the target's cost instead of a number of neurons, and
so have no limits on the loss that a neuron may cost. The paper's criterion is `flatness`; with another one this is
gradual pruning with a flatness penalty, and with mu_rel = 0 gradual pruning alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.curvature import Fisher, Radii, factored_layers, fisher_losses, sharpness, watched
from autoprune.errors import BadRecipe
from autoprune.fields import choice, integer, real
from autoprune.graph import Structure
from autoprune.graph.surgery import ZEROED, tensor_by_name
from autoprune.masks import Hold, Masks
from autoprune.regularisers._base import Regulariser, RegulariserContext, Shaped
from autoprune.regularisers._training import train_in
from autoprune.seeds import derive_seed
from autoprune.tasks import eval_mode, forward, logits_of
from autoprune.training import samples_of
from autoprune.training_settings import TrainingSettings

_CLIP = 5.0
_LOOKED_AT = 512
# classes up to which reported radii are of the expectation over labels
_FEW_CLASSES = 32


@dataclass(frozen=True, kw_only=True)
class SpectralRadius(TrainingSettings, Regulariser):
    """Train with a penalty on the curvature's spectral radius, and let units go on the way.

    The default of mu_rel is ours, from measurements on digits from new weights: the ratio is taken where the radius is
    largest and the loss not yet small, so that 1 and less changed nothing in three seeds, while 10 lowered the radii by
    two fifths and the Hessian's largest eigenvalue by three fifths, for two points of accuracy before finetuning. From
    the base model's weights, already flat, neither 3 nor 10 lowered the radii.
    """

    epochs: float = real(60.0, valid=(0.01, 10000.0), search=(1.0, 60.0), log=True, help="epochs before the cut")
    mu_rel: float = real(
        10.0, valid=(0.0, 1000.0), search=(0.3, 30.0), log=True, help="penalty relative to the loss, at its first use"
    )
    penalty: str = choice("sum", options=("sum", "max"), help="of the layers' spectral radii")
    flat_start: float = real(0.05, valid=(0.0, 1.0), search=(0.0, 0.3), help="part of the training without penalty")
    flat_every: int = integer(4, valid=(1, 10000), search=(1, 8), log=True, help="steps from one penalty to the next")
    settle: float = real(0.05, valid=(0.0, 1.0), search=(0.0, 0.2), help="last part of the training without penalty")
    prune_start: float = real(
        0.2, valid=(0.0, 1.0), search=(0.05, 0.4), help="part of the training before the first event"
    )
    prune_end: float = real(0.7, valid=(0.0, 1.0), search=(0.5, 0.9), help="part of the training before the last event")
    event_every: float = real(
        1.0, valid=(0.001, 10000.0), search=(0.5, 5.0), log=True, help="epochs from one event to the next"
    )
    fisher: Fisher = choice(  # noqa: RUF009 - a literal behind an alias
        "sampled",
        options=("sampled", "empirical", "exact"),
        search=("sampled",),
        help="labels of the curvature: drawn from the model's output, the true ones, or all by their probability",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune_end < self.prune_start:
            raise BadRecipe(
                f"SpectralRadius.prune_end must be at least prune_start, {self.prune_start:g}, got {self.prune_end:g}"
            )

    def shape(self, model: nn.Module, context: RegulariserContext) -> Shaped:
        penalty = _Penalty(self, factored_layers(model.to(context.device)), context)
        looked = min(_LOOKED_AT, len(context.data.train))
        inputs, targets = next(context.data.train.batches(looked, limit=looked, device=context.device))
        before, labels = penalty.radius_of(model, inputs, targets)
        samples, hook = samples_of(self.epochs, context.data.train), _Pruning(self, context, penalty)
        trained = train_in(context, model, self, samples, loss=penalty, hook=hook)
        after, _ = penalty.radius_of(model, inputs, targets)
        draws = torch.Generator().manual_seed(derive_seed(context.seed, "sharpness"))
        with eval_mode(model):
            end = sharpness(model, context.task, inputs, targets, draws)
        note = (
            f"spectral_radius: largest eigenvalue of the Hessian {end:.3g} behind the training; {self.penalty} of "
            f"spectral radii ({labels} labels) {before:.3g} before it and {after:.3g} behind it"
        )
        return Shaped(trained_samples=trained, as_chosen=True, forward_samples=5 * looked, notes=(note,))

    def event_steps(self, steps: int) -> dict[int, float]:
        """Return the progress reached by number of steps done; where several events fall on one step, the last."""
        last = max(1, 1 + math.floor((self.prune_end - self.prune_start) * self.epochs / self.event_every + 1e-9))
        found = {}
        for e in range(1, last + 1):
            part = self.prune_start + (self.prune_end - self.prune_start) * (e - 1) / max(1, last - 1)
            found[min(steps, max(1, round(part * steps)))] = 1 - (1 - e / last) ** 3
        return found


@dataclass
class _Penalty:
    """The loss of the training. `due`: whether the next step has the penalty."""

    method: SpectralRadius
    layers: Mapping[str, Any]
    context: RegulariserContext
    due: bool = False
    mu: float | None = None
    draws: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.draws.manual_seed(derive_seed(self.context.seed, "fisher"))
        self.radii = Radii(self.layers, self.draws)

    def __call__(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        if not self.due:
            return self.context.task.loss(forward(model, inputs), targets)
        loss, radius = self._of(model, inputs, targets, self.radii, self.draws, self.method.fisher)
        if self.mu is None:
            now = float(radius.detach())
            self.mu = self.method.mu_rel * float(loss.detach()) / now if now > 0 else 0.0
        return loss + self.mu * radius

    def radius_of(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[float, Fisher]:
        """Return the penalty, times nothing, of a model in eval mode, and the labels that it was taken by.

        All of them where classes are few: drawn ones of a model that is sure of its classes are a few rare mistakes.
        """
        draws = torch.Generator().manual_seed(derive_seed(self.context.seed, "radius"))
        with eval_mode(model):
            few = self.context.task.classification and _classes(model, inputs) <= _FEW_CLASSES
            fisher: Fisher = "exact" if few else self.method.fisher
            found = self._of(model, inputs, targets, Radii(self.layers, draws), draws, fisher)[1]
            return float(found.detach()), fisher

    def _of(
        self, model: nn.Module, inputs: Any, targets: Any, radii: Radii, draws: torch.Generator, fisher: Fisher
    ) -> tuple[Tensor, Tensor]:
        """Return the task's loss and the sum or largest of the layers' spectral radii."""
        task = self.context.task
        # second derivatives want full precision
        with torch.autocast(self.context.device.type, enabled=False):
            with watched(self.layers) as seen:
                output = forward(model, inputs)
            losses = fisher_losses(output, targets, task, fisher, draws)
            found = torch.stack(list(radii.of(seen, losses).values()))
            return task.loss(output, targets), found.max() if self.method.penalty == "max" else found.sum()


def _classes(model: nn.Module, inputs: Any) -> int:
    with torch.no_grad():
        return logits_of(forward(model, inputs)).shape[1]


class _Pruning(Hold):
    """Holds removed units at zero, removes more at every event, and says which steps have the penalty."""

    def __init__(self, method: SpectralRadius, context: RegulariserContext, penalty: _Penalty) -> None:
        super().__init__({})
        self._method, self._context, self._penalty = method, context, penalty
        self._model, self._steps = nn.Module(), 0
        self._events: dict[int, float] = {}
        self._alive: dict[str, list[int]] = {}
        self._buffers: Masks = {}

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self._model, self._steps, self._events = model, steps, self._method.event_steps(steps)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        places = {p.tensor for g in self._context.structure.groups for p in g.places_with(*ZEROED)}
        full = {n: torch.ones_like(tensor_by_name(model, n), dtype=torch.bool) for n in sorted(places)}
        self.masks = {name: mask for name, mask in full.items() if name in parameters}
        # running means stay at zero by themselves, behind outputs that are zero
        self._buffers = {name: mask for name, mask in full.items() if name not in parameters}
        super().begin(model, optimizer, steps)
        self._penalty.due = self._is_due(0)

    def _is_due(self, step: int) -> bool:
        start, end = (part * self._steps for part in (self._method.flat_start, 1 - self._method.settle))
        return (
            self._method.mu_rel > 0 and start <= step < end and (step - math.ceil(start)) % self._method.flat_every == 0
        )

    def before_step(self, step: int) -> bool:
        super().before_step(step)
        if self._penalty.due:
            nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP)
        return False

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if step + 1 in self._events:
            self._remove(self._events[step + 1])
        self._penalty.due = self._is_due(step + 1)

    def _remove(self, progress: float) -> None:
        with eval_mode(self._model):
            self._alive |= self._context.choose(self._model, self._alive, progress)
        for name, mask in kept_masks(self._context.structure, self._alive, self.masks | self._buffers).items():
            if name in self.masks:
                self.set_mask(name, mask)
            else:
                tensor_by_name(self._model, name).masked_fill_(~mask, 0.0)


def kept_masks(structure: Structure, keep: Mapping[str, list[int]], like: Masks) -> Masks:
    """Return masks over whole tensors that are False where something computes, shifts or scales a unit not kept."""
    found = {name: torch.ones_like(mask) for name, mask in like.items()}
    for group in structure.groups:
        gone = sorted(set(range(group.size)) - set(keep.get(group.name, range(group.size))))
        for place in group.places_with(*ZEROED) if gone else ():
            if place.tensor in found:
                mask = found[place.tensor]
                mask.index_fill_(place.axis, torch.tensor(place.indices[gone].flatten(), device=mask.device), False)
    return found
