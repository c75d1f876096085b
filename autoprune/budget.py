"""How long a pruned network may train from scratch, next to the network that it comes from. Liu et al., ICLR 2019.

arXiv 1810.05270. `rho` is how many times cheaper a forward pass became: FLOPs of the dense network over those of the
pruned one. By epochs (scratch-E) the pruned network trains as long as the dense one did, by computation (scratch-B) as
many more epochs as the cut saves, up to `cap` times. Learning rates fall at the same relative positions.
"""

from __future__ import annotations

from collections.abc import Sequence

PAPER_CAP = 2.0
_ROUNDING = 1e-9
_PASSES = 3
"""A training step costs about three forward passes: one forward, two backward."""


def budget(dense_epochs: float, rho: float, cap: float | None = PAPER_CAP) -> int:
    """Return the whole epochs of scratch-B.

    >>> budget(160, 3), budget(160, 3, None)
    (320, 480)
    """
    return int(scaled(dense_epochs, rho, cap) + _ROUNDING)


def scaled(dense_epochs: float, rho: float, cap: float | None = PAPER_CAP) -> float:
    """Return the epochs of scratch-B before they are made whole. Raises ValueError for rho below 1."""
    if rho < 1 - _ROUNDING:
        raise ValueError(f"rho is the FLOPs of the dense network over those of the pruned one, at least 1; got {rho}")
    return dense_epochs * (rho if cap is None else min(rho, cap))


def milestones(epochs: int, parts: Sequence[float] = (0.5, 0.75)) -> list[int]:
    """Return the epochs at which the rate falls, for relative positions.

    >>> milestones(243)
    [121, 182]
    """
    return [int(epochs * part + _ROUNDING) for part in parts]


def periodic_milestones(dense_epochs: float, dense_step: float, rho: float, cap: float | None = PAPER_CAP) -> list[int]:
    """Return the epochs at which a rate that falls every `dense_step` epochs falls under scratch-B.

    >>> periodic_milestones(100, 30, 1.17)
    [35, 70, 105]
    """
    step, epochs = budget(dense_step, rho, cap), budget(dense_epochs, rho, cap)
    return list(range(step, epochs, step))


def training_flops(epochs: float, samples: int, flops: float) -> float:
    """Return the FLOPs of a training: epochs * samples * 3 * the FLOPs of one sample's forward pass."""
    return epochs * samples * _PASSES * flops
