"""The handwritten digits bundled with scikit-learn: 1797 grey images of 8x8 pixels, ten classes.

Split by class with fixed seeds: test 359 (a fifth, always the same), validation from the rest by
`validation_fraction` (0.2: 287), train what remains (1151). Inputs are float32 in [0, 1], (N, 1, 8, 8).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoprune.data.fingerprint import fingerprint_of
from autoprune.data.images import ImagePreparation, Pixels
from autoprune.data.split import Data, TensorSplit, stratified_split
from autoprune.specs import DataSpec

_TEST_FRACTION = 0.2
_TEST_SEED = 0
_BRIGHTEST = 16.0


def build_digits(spec: DataSpec) -> Data:
    """Return the digits, split."""
    images, labels = _read()
    everything = TensorSplit(images, labels, prepare=ImagePreparation(augment=spec.augment))
    learning_indices, test_indices = stratified_split(labels, _TEST_FRACTION, _TEST_SEED)
    learning = everything.subset(learning_indices)
    kept, held = stratified_split(labels[learning_indices], spec.validation_fraction, spec.seed)
    return Data(
        train=learning.subset(kept),
        validation=learning.subset(held),
        test=everything.subset(test_indices),
        name=spec.name,
        num_classes=10,
        fingerprint=fingerprint_of("digits", images, labels, spec.validation_fraction, spec.seed),
        pixels=Pixels(),
    )


def _read() -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) and labels (N,)."""
    found = importlib.util.find_spec("sklearn")
    table = Path(found.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if found else Path()
    if table.is_file():
        # What load_digits reads. To import it takes longer than to trace and check a small model.
        rows = np.loadtxt(table, delimiter=",")
        pixels, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    else:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels, labels = bunch.images, bunch.target
    return torch.from_numpy(pixels).float().div_(_BRIGHTEST).unsqueeze(1), torch.from_numpy(labels).long()
