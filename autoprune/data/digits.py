"""The handwritten digits bundled with scikit-learn: 1797 grey images of 8x8 pixels, ten classes.

Split by class with fixed seeds: test 359 (a fifth, always the same), validation from the rest by
`validation_fraction` (0.2: 287), train what remains (1151). Inputs are float32 in [0, 1], (N, 1, 8, 8).
"""

from __future__ import annotations

import torch

from autoprune.data.fingerprint import fingerprint_of
from autoprune.data.images import ImagePreparation, Pixels
from autoprune.data.split import Data, TensorSplit, stratified_split
from autoprune.specs import DataSpec

_TEST_FRACTION = 0.2
_TEST_SEED = 0
_BRIGHTEST = 16.0


def build_digits(spec: DataSpec) -> Data:
    """Return the digits, split."""
    from sklearn.datasets import load_digits  # half a second that other data need not pay

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(_BRIGHTEST).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
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
