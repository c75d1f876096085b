"""What the layers that produce a group's units look like: positions and FLOPs."""

from __future__ import annotations

import math

from autoprune.graph import Group, Layer, Role, Structure


def producing_layers(group: Group, structure: Structure) -> list[Layer]:
    """Return the layers whose outputs are the group's units; depthwise ones only where there are no others."""
    places = group.places_with(Role.OUTPUT) or group.places_with(Role.DEPTHWISE)
    by_weight = {layer.weight: layer for layer in structure.layers}
    return [by_weight[p.tensor] for p in places if p.tensor in by_weight]


def positions_of(group: Group, structure: Structure) -> float:
    """Return at how many positions a unit is computed, H * W: mean over its producing layers; 1 if unknown."""
    layers = producing_layers(group, structure)
    return sum(_positions(layer) for layer in layers) / len(layers) if layers else 1.0


def flops_of_a_map(group: Group, structure: Structure) -> float:
    """Return the FLOPs of computing one unit, summed over its producing layers. Molchanov et al. 2017, appendix.

    Convolution 2 * H * W * (C_in * K ** 2 + 1), linear layer 2 * I - 1 at each position.
    """
    return sum(_positions(layer) * _flops_at_one(layer) for layer in producing_layers(group, structure))


def _positions(layer: Layer) -> int:
    return sum(math.prod(call.out_positions) for call in layer.calls)


def _flops_at_one(layer: Layer) -> int:
    if layer.kind == "linear":
        return 2 * layer.in_features - 1
    return 2 * (layer.in_features // layer.groups * math.prod(layer.kernel) + 1)
