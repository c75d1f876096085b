"""A model whose units have gates of one, to be differentiated by: every weight of a unit is multiplied by its gate.

Since the weights are linear in the gates, theta_s . dL/dtheta_s is the gradient of gate s, and theta_s . H . theta_t
the second derivative by the gates s and t. Gates where units are read stand for the units' activations, gates where
they are produced for the weights themselves.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from autoprune.data.split import map_tensors
from autoprune.graph import Role, Structure
from autoprune.tasks import batch_length

_CHUNK_BYTES = 2**28
"""What the weight gradients of one layer may take for the samples that are differentiated together."""


class GatedModel:
    """A copy of a model in eval mode on a device. U units of all groups, in the order of the structure."""

    def __init__(self, model: nn.Module, structure: Structure, device: torch.device, *roles: Role) -> None:
        self.structure = structure
        self._probe = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        self._parameters = dict(self._probe.named_parameters(remove_duplicate=False))
        self._plans = [
            (plan.tensor, plan.axis, torch.tensor(plan.units, device=device))
            for plan in structure.axes
            if plan.role in roles and plan.tensor in self._parameters
        ]
        self._device = device

    def train(self) -> GatedModel:
        """Put the copy into training mode and return it."""
        self._probe.train()
        return self

    def ones(self) -> Tensor:
        """Return gates (U,) of one, float64."""
        return torch.ones(int(self.structure.sizes.sum()), dtype=torch.float64, device=self._device)

    def __call__(self, gates_U: Tensor, inputs: Any) -> Any:
        """Call the model with its units scaled by the gates."""
        # The last entry, which unit -1 (none) finds, stays one.
        padded = torch.cat([gates_U, gates_U.new_ones(1)])
        gated: dict[str, Tensor] = {}
        for name, axis, units in self._plans:
            weight = gated[name] if name in gated else self._parameters[name].double()
            gated[name] = weight * padded[units].view([-1 if a == axis else 1 for a in range(weight.ndim)])
        weights = {name: weight.to(self._parameters[name].dtype) for name, weight in gated.items()}
        if isinstance(inputs, dict):
            return functional_call(self._probe, weights, (), inputs)
        return functional_call(self._probe, weights, inputs if isinstance(inputs, tuple) else (inputs,))

    def per_sample(self, of_one: Callable[[Any, Any], Any], inputs: Any, targets: Any, *, width: int = 1) -> Tensor:
        """Return `of_one(inputs, targets)` of every sample as a batch of one, stacked on a new first axis.

        of_one: returns one tensor.

        width: how many gradients `of_one` takes at once, which decides how many samples are taken together.
        """

        def alone(one_input: Any, one_target: Any) -> Any:
            return of_one(*(map_tensors(v, lambda t: t.unsqueeze(0)) for v in (one_input, one_target)))

        try:
            together = vmap(alone, chunk_size=self._chunk(width), randomness="different")
            return cast(Tensor, together(inputs, targets))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
        # A model or a loss that looks at values in Python cannot be batched: the same numbers, one by one.
        rows = (map_tensors((inputs, targets), operator.itemgetter(i)) for i in range(batch_length(targets)))
        return torch.stack([alone(*row) for row in rows])

    def _chunk(self, width: int) -> int:
        largest = max((self._parameters[name].numel() for name, _, _ in self._plans), default=1)
        return max(1, _CHUNK_BYTES // (8 * largest * width))

    def by_group(self, values: Tensor) -> dict[str, Tensor]:
        """Split the last axis (U,) into the groups' units."""
        parts = torch.split(values, [int(n) for n in self.structure.sizes], dim=-1)
        return {g.name: part for g, part in zip(self.structure.groups, parts, strict=True)}
