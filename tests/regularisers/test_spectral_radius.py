from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from autoprune.errors import BadRecipe
from autoprune.recipe import Recipe
from autoprune.regularisers.spectral_radius import SpectralRadius, kept_masks
from autoprune.trial import Bench, prepare
from autoprune.trial.run import start
from autoprune.trial.shaping import regularised

QUICK: dict[str, Any] = {"epochs": 2.0, "event_every": 0.5, "batch_size": 64, "lr": 0.05}


def test_events_come_at_equal_distances_and_ramp_up_as_a_cube() -> None:
    method = SpectralRadius(epochs=10, prune_start=0.2, prune_end=0.7, event_every=1.0)
    found = method.event_steps(1000)
    assert list(found) == [200, 300, 400, 500, 600, 700]
    assert list(found.values()) == pytest.approx([1 - (1 - e / 6) ** 3 for e in range(1, 7)])
    assert list(SpectralRadius(epochs=0.1, event_every=5.0).event_steps(3).values()) == [1.0]


def test_events_must_be_in_order() -> None:
    with pytest.raises(BadRecipe, match=r"prune_end must be at least prune_start, 0\.4, got 0\.3"):
        SpectralRadius(prune_start=0.4, prune_end=0.3)


def shaped(digits_bench: Bench, watch: Any = None, **changes: Any) -> Any:
    """Shape a copy of the base model by a recipe, and return what the trial gets."""
    from autoprune.trial.choosing import Chooser

    recipe = Recipe.parse(
        {
            "criterion": "flatness", "normalisation": "none", "allocation": "global",
            "target": {"flops_fraction": 0.5}, "regulariser": {"name": "spectral_radius", **QUICK, **changes},
        }
    )  # fmt: skip
    state, _ = start(recipe, digits_bench, 0)
    (step,) = recipe.schedule.steps()
    chooser = Chooser(recipe, digits_bench, 0, {})
    if watch is not None:
        plain = chooser.ahead
        chooser.ahead = lambda *given: watch(given, plain(*given))  # type: ignore[method-assign]
    return regularised(recipe, digits_bench, state, chooser, step, 0, before=0.0)


def test_what_is_zero_at_the_end_is_what_the_cut_takes_and_the_cut_equals_the_model(digits_bench: Bench) -> None:
    sizes: list[int] = []

    def watch(given: Any, chosen: Any) -> Any:
        sizes.append(sum(g.size for g in given[0].structure.groups))
        return chosen

    found = shaped(digits_bench, watch)
    assert sizes == sorted(sizes, reverse=True)  # chosen among what is left, by really cut copies
    assert sizes[0] > sizes[-1]
    amounts, keep = found.chosen.amounts, found.chosen.keep
    assert 0.45 < amounts.flops_fraction <= 0.5
    structure, model = found.state.structure, cast(nn.Module, found.state.model)
    for group in structure.groups:
        gone = [i for i in range(group.size) if i not in set(keep.get(group.name, range(group.size)))]
        for place in group.producers:
            rows = model.get_parameter(place.tensor).movedim(place.axis, 0)
            assert bool((rows[place.indices[gone].flatten()] == 0).all())
    inputs = digits_bench.data.example_inputs.double()
    small = structure.cut(model.double(), keep)
    assert torch.allclose(small(inputs), model(inputs), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert any("largest eigenvalue of the Hessian" in note for note in found.notes)


def test_a_trial_with_low_rank_and_two_cuts_meets_its_target(digits_bench: Bench) -> None:
    recipe = Recipe.parse(
        {
            "criterion": "l1_norm", "allocation": "global", "target": {"flops_fraction": 0.4},
            "schedule": {"name": "iterative", "count": 2, "epochs_between": 0.1},
            "regulariser": {"name": "spectral_radius", **QUICK, "epochs": 0.5}, "low_rank": "svd",
            "start": "fresh",
        }
    )  # fmt: skip
    prepared = prepare(recipe, digits_bench, seed=0)
    assert 0.36 < prepared.amounts.flops_fraction <= 0.4
    assert prepared.compressed.factors
    assert prepared.cost.trained_samples >= 2 * round(0.5 * len(digits_bench.data.train))


def test_momentum_goes_with_the_units_and_nothing_comes_back(network: Any, make_context: Any) -> None:
    model = network()
    context = make_context(model)
    seen: list[tuple[int, bool]] = []
    method = SpectralRadius(epochs=4.0, event_every=0.5, batch_size=64, lr=0.05)
    plain = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *arguments: Any) -> Any:
        result = plain(self, *arguments)
        weight = cast(Tensor, model[0].weight)
        momentum = self.state[weight]["momentum_buffer"]
        zero = (weight.detach().flatten(1) == 0).all(dim=1)
        seen.append((int(zero.sum()), bool((momentum[zero] == 0).all())))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        method.shape(model, context)
    counts = [count for count, _ in seen]
    assert counts == sorted(counts)  # never back
    assert (counts[0], counts[-1]) == (0, 8)
    assert all(kept for _, kept in seen)


def test_masks_lie_over_everything_that_makes_a_unit(network: Any, make_context: Any) -> None:
    model = network()
    structure = make_context(model).structure
    like = {n: torch.ones_like(t, dtype=torch.bool) for n, t in model.state_dict().items() if t.ndim}
    found = kept_masks(structure, {"0": [*range(15)]}, like)
    gone = {n: int((~mask).sum()) for n, mask in found.items() if not bool(mask.all())}
    assert gone == {"0.weight": 27, "1.weight": 1, "1.bias": 1, "1.running_mean": 1}
    masked = structure.mask(model, {"0": [*range(15)]})
    for name, mask in found.items():
        expected = copy.deepcopy(model.state_dict()[name]).masked_fill(~mask, 0.0)
        assert torch.equal(masked.state_dict()[name], expected)


@pytest.mark.parametrize("penalty", ["sum", "max"])
def test_the_penalty_makes_the_minimum_flatter(penalty: str, network: Any, make_context: Any) -> None:
    def eigenvalue(mu_rel: float) -> float:
        model = network()
        method = SpectralRadius(
            epochs=8.0, mu_rel=mu_rel, penalty=penalty, event_every=100.0, batch_size=64, lr=0.05, flat_every=1
        )
        (note,) = method.shape(model, make_context(model)).notes
        return float(note.split("Hessian ")[1].split(" ")[0])

    assert eigenvalue(1.0) < 0.7 * eigenvalue(0.0)
