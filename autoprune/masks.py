"""Masks over single weights: the one mechanism behind all unstructured methods.

A mask is a boolean tensor of its weight's shape, True where the weight stays. Masks go by parameter name and lie over
the weights of convolutions and linear layers; biases and norms have none. A masked weight is an exact zero in the
parameter itself, so that a model needs no wrapper to be evaluated, saved or exported, and `weight.grad` is the dense
gradient until `Hold` masks it.

Choices are exact: so many weights stay as were asked for, and of equal scores the one that comes first stays, by the
order in which the model registers its layers and by flat index inside a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autoprune.modules import unwrapped
from autoprune.training import StepHook

Masks = dict[str, Tensor]
Scores = Mapping[str, Tensor]


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that masks can lie over, by name, in the order of registration; shared ones once."""
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (_ConvNd, nn.Linear)) and isinstance(weight, nn.Parameter):
            found.setdefault(f"{name}.weight" if name else "weight", weight)
    distinct = {id(weight): name for name, weight in reversed(found.items())}
    return {name: weight for name, weight in found.items() if distinct[id(weight)] == name}


def full(model: nn.Module) -> Masks:
    """Return masks that keep every weight."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}


def count(masks: Mapping[str, Tensor]) -> int:
    """Return how many weights stay."""
    return sum(int(mask.sum()) for mask in masks.values())


def size(tensors: Mapping[str, Tensor]) -> int:
    """Return how many weights there are, masked ones included."""
    return sum(tensor.numel() for tensor in tensors.values())


def kept_of(total: int, sparsity: float) -> int:
    """Return how many of `total` weights stay at a sparsity, rounded half to even."""
    # without the rounding to 9 digits (1 - 0.9) * 5 is 0.4999...
    return round(round((1 - sparsity) * total, 9))


@torch.no_grad()
def zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked weights of a model to zero, in place."""
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        weight.masked_fill_(~mask.to(weight.device), 0.0)


def keep_largest(scores: Scores, kept: int, among: Mapping[str, Tensor] | None = None) -> Masks:
    """Return masks that keep the `kept` largest scores of all layers together, and at least one in every layer.

    A layer that the ranking would empty keeps its largest score; for it the smallest kept score among layers that hold
    more than one goes. `kept` is raised to the number of layers. `among`: masks of the candidates, by default all.
    """
    names = list(scores)
    layers = torch.cat([torch.full((scores[n].numel(),), i, dtype=torch.int64) for i, n in enumerate(names)])
    flat = torch.cat([_candidates(scores[n], None if among is None else among[n]).cpu() for n in names])
    order = torch.argsort(flat, descending=True, stable=True)
    there = int((flat > -torch.inf).sum())
    filled = int((torch.bincount(layers[flat > -torch.inf], minlength=len(names)) > 0).sum())
    kept = min(max(kept, filled), there)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:kept]] = True
    _fill_empty(chosen, order, layers, len(names), there)
    parts = torch.split(chosen, [scores[n].numel() for n in names])
    return {n: part.view(scores[n].shape).to(scores[n].device) for n, part in zip(names, parts, strict=True)}


def _candidates(score: Tensor, mask: Tensor | None) -> Tensor:
    flat = score.detach().flatten().double()
    return flat if mask is None else flat.masked_fill(~mask.flatten(), -torch.inf)


def _fill_empty(chosen: Tensor, order: Tensor, layers: Tensor, count: int, there: int) -> None:
    """Give every layer without a chosen score its best one, in place; the number of chosen scores stays."""
    ranked = layers[order]
    held = torch.bincount(layers[chosen], minlength=count)
    for layer in (held == 0).nonzero().flatten().tolist():
        own = (ranked[:there] == layer).nonzero().flatten()
        spare = (chosen[order] & (held[ranked] > 1)).nonzero().flatten()
        if len(own) and len(spare):
            worst = order[spare[-1]]
            held[layers[worst]] -= 1
            chosen[worst], chosen[order[own[0]]] = False, True
            held[layer] = 1


def keep_largest_in(score: Tensor, kept: int, among: Tensor | None = None) -> Tensor:
    """Return the mask of the `kept` largest scores of one layer; of equal ones the lower index stays."""
    flat = _candidates(score, among)
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[torch.argsort(flat, descending=True, stable=True)[:kept]] = True
    return mask.view(score.shape)


def keep_random(shape: torch.Size, kept: int, generator: torch.Generator) -> Tensor:
    """Return a mask, on the CPU, of exactly `kept` entries drawn at random."""
    mask = torch.zeros(shape.numel(), dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=generator)[:kept]] = True
    return mask.view(shape)


def keep_n_of_m(score: Tensor, n: int, m: int, among: Tensor | None = None) -> Tensor:
    """Return the mask of the n largest scores among every m neighbours along axis 1, the inputs of an output.

    For a convolution (O, I, ...) neighbours are input channels at one kernel position, as sparse tensor cores want
    them. I must be a multiple of m. n is a ceiling where fewer candidates are left.
    """
    moved = score.movedim(1, -1)
    grouped = moved.reshape(-1, m)
    allowed = torch.ones_like(grouped, dtype=torch.bool)
    if among is not None:
        allowed = among.movedim(1, -1).reshape(-1, m)
    ranks = torch.argsort(grouped.masked_fill(~allowed, -torch.inf), dim=1, descending=True, stable=True)
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, ranks[:, :n], True) & allowed
    return mask.view(moved.shape).movedim(-1, 1).contiguous()


class Hold(StepHook):
    """Holds masked weights, their gradients and their optimiser state at exactly zero during a training.

    `masks` are those at present; methods that move them derive from this class.
    Nothing but `set_mask` changes a mask, so that no weight comes back by itself.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks: Masks = {name: mask.clone() for name, mask in masks.items()}
        self.weights: dict[str, nn.Parameter] = {}
        self._gone: Masks = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Find the weights, take the masks to their device, and zero what is masked."""
        inner = unwrapped(model)
        self._optimizer = optimizer
        for name, mask in self.masks.items():
            self.weights[name] = inner.get_parameter(name)
            self.set_mask(name, mask.to(self.weights[name].device))

    def before_step(self, step: int) -> bool:
        """Mask the gradients."""
        self.mask_gradients()
        return False

    def after_step(self, step: int) -> None:
        """Mask weights and optimiser state: momentum and rounding may have moved them."""
        self.mask_weights()

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(self._gone[name], 0.0)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zero masked weights and their optimiser state."""
        for name, weight in self.weights.items():
            weight.masked_fill_(self._gone[name], 0.0)
            self.clear_state(name, self._gone[name])

    @torch.no_grad()
    def set_mask(self, name: str, mask: Tensor) -> None:
        """Change one mask. Weights that go become zero, weights that come start at zero, both without momentum."""
        before = self.masks[name].to(mask.device)
        self.masks[name], self._gone[name] = mask, ~mask
        self.weights[name].masked_fill_(self._gone[name], 0.0)
        self.clear_state(name, self._gone[name] | (mask & ~before))

    @torch.no_grad()
    def clear_state(self, name: str, where: Tensor) -> None:
        """Zero the optimiser's state of one weight at some entries; counts of steps are per tensor and stay."""
        weight = self.weights[name]
        state = self._optimizer.state.get(weight, {}) if self._optimizer is not None else {}
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(where, 0.0)
