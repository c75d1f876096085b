from __future__ import annotations

import pytest

from autoprune.budget import budget, milestones, periodic_milestones, training_flops

# VGG-16 and its variant A on CIFAR-10: multiply-adds of convolutions and classifier
VGG, VGG_A = 313_201_664, 206_146_048


@pytest.mark.parametrize(
    ("dense", "rho", "cap", "expected"),
    [
        (160, VGG / VGG_A, 2.0, 243),
        (160, 3.0, 2.0, 320),
        (160, 3.0, None, 480),
        (90, 141 / 90, 2.0, 141),
        (90, 98 / 90, 2.0, 98),  # without care for rounding it would be 97
        (160, 1.0, 2.0, 160),
    ],
)
def test_epochs_by_compute(dense: int, rho: float, cap: float | None, expected: int) -> None:
    assert budget(dense, rho, cap) == expected


def test_the_rate_falls_at_the_same_relative_positions() -> None:
    assert milestones(160) == [80, 120]
    assert milestones(243) == [121, 182]


@pytest.mark.parametrize(
    ("rho", "epochs", "expected"), [(1.17, 117, [35, 70, 105]), (1.45, 145, [43, 86, 129]), (1.79, 179, [53, 106, 159])]
)
def test_a_rate_that_falls_periodically_falls_in_proportion(rho: float, epochs: int, expected: list[int]) -> None:
    assert budget(100, rho) == epochs
    assert periodic_milestones(100, 30, rho) == expected


@pytest.mark.parametrize("rho", [1.1, 1.37, 1.519, 1.99])
def test_by_compute_spends_what_the_dense_training_did_up_to_one_epoch(rho: float) -> None:
    dense = training_flops(160, 50_000, VGG)
    epochs = budget(160, rho)
    by_compute = training_flops(epochs, 50_000, VGG / rho)
    assert (1 - 1 / epochs) * dense < by_compute <= dense * (1 + 1e-9)
    assert training_flops(160, 50_000, VGG / rho) == pytest.approx(dense / rho)


def test_a_network_that_became_dearer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1; got 0\.5"):
        budget(160, 0.5)
