from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.errors import BadRecipe
from autoprune.recipe import Recipe
from autoprune.recovery.fold_shift import FoldShift

MakeCut = Callable[..., tuple[nn.Module, nn.Module, Any, Tensor]]
KEEP = {"0": [0, 2, 3, 5]}
IMAGES = torch.randn(8, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(*reader: nn.Module, scale: float = 0.0, shift: float = 0.7) -> nn.Sequential:
    """Units 1 and 4 of the first layer have this scale and shift; no statistic is trivial."""
    torch.manual_seed(0)
    front = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    model = nn.Sequential(*front, *reader, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.2, 1.5)
    with torch.no_grad():
        model[1].weight[[1, 4]], model[1].bias[[1, 4]] = scale, shift
    return model


def through(model: nn.Module, layers: int) -> Tensor:
    with torch.no_grad():
        found: Tensor = model[:layers](IMAGES)  # type: ignore[index]
    return found


@pytest.mark.parametrize("constant", ["expected", "shift"])
@pytest.mark.parametrize(
    "reader",
    [(nn.Conv2d(6, 5, 3, padding=1),), (nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5))],
    ids=["bias", "norm behind"],
)
def test_constant_units_are_folded_exactly_but_for_padded_borders(
    make_cut: MakeCut, reader: tuple[nn.Module, ...], constant: str
) -> None:
    base, cut, context, _ = make_cut(network(*copy.deepcopy(reader)), IMAGES, KEEP)
    plain = copy.deepcopy(cut)
    FoldShift(constant=constant).recover(cut, context, 0.0)
    depth = 3 + len(reader)
    wrong, dropped = ((through(m, depth) - through(base, depth)).abs() for m in (cut, plain))
    assert float(wrong[..., 1:-1, 1:-1].max()) < 1e-6
    border = torch.ones(7, 7, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert float(wrong[..., border].max()) > 1e-2
    assert float(dropped[..., 1:-1, 1:-1].mean()) > 1e-2


def test_the_bias_by_hand_for_units_that_vary(make_cut: MakeCut) -> None:
    """E relu(z) for z ~ N(0.5, 2 ** 2) is 1.072689396; at the shift alone it is 0.5."""
    model = network(nn.Conv2d(6, 5, 1), scale=-2.0, shift=0.5)
    model[1].running_var.fill_(1.0)
    model[1].eps = 0.0
    for constant, value in (("expected", 1.072689396), ("shift", 0.5)):
        base, cut, context, _ = make_cut(copy.deepcopy(model), IMAGES, KEEP)
        FoldShift(constant=constant).recover(cut, context, 0.0)
        expected = base[3].bias + value * base[3].weight[:, [1, 4], 0, 0].sum(1)  # type: ignore[index]
        assert torch.allclose(cut[3].bias, expected, atol=1e-8)  # type: ignore[index]


def test_flattened_maps_and_cut_readers(make_cut: MakeCut) -> None:
    model = network(nn.Flatten(), nn.Linear(6 * 49, 9), nn.ReLU(), nn.Linear(9, 20), nn.Unflatten(1, (5, 4, 1)))
    base, cut, context, _ = make_cut(model, IMAGES, KEEP | {"4": [0, 3, 8]})
    FoldShift().recover(cut, context, 0.0)
    assert torch.allclose(through(cut, 5), through(base, 5)[:, [0, 3, 8]], atol=1e-9)


def test_without_a_norm_in_front_or_a_place_to_fold_to_nothing_happens(make_cut: MakeCut) -> None:
    model = network(nn.Conv2d(6, 5, 3, bias=False))
    _, cut, context, _ = make_cut(model, IMAGES, KEEP)
    before = copy.deepcopy(cut.state_dict())
    FoldShift().recover(cut, context, 0.0)
    assert all(torch.equal(v, before[k]) for k, v in cut.state_dict().items())


def test_two_corrections_of_the_same_layers_are_refused() -> None:
    with pytest.raises(BadRecipe, match="compensation and fold_shift correct the same layers"):
        Recipe.parse({"recovery": ["compensation", "fold_shift", "finetune"]})
