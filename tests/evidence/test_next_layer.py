from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.evidence.next_layer import ROWS_PER_IMAGE, sample, terms


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 8, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
        nn.Conv2d(6, 8, 3, padding="same", bias=False),
        nn.Conv2d(6, 8, 3, padding=1, groups=2),
    ],
)
def test_the_terms_of_a_convolution_add_up_to_its_outputs(layer: nn.Conv2d) -> None:
    layer = layer.double()
    images = torch.randn(4, 6, 9, 7, dtype=torch.float64)
    rows = sample(layer, images, torch.Generator().manual_seed(0))
    found = terms(layer, images, rows)
    outputs = layer(images) if layer.bias is None else layer(images) - layer.bias[:, None, None]
    assert found.shape == (4 * ROWS_PER_IMAGE, layer.weight.shape[1])
    assert int(rows.position.max()) > outputs.shape[3]
    expected = outputs.flatten(2)[rows.image, rows.output, rows.position]
    assert torch.allclose(found.sum(1), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(5, 7), torch.randn(4, 5)),
        (nn.Linear(5, 7), torch.randn(4, 3, 2, 5)),
        (nn.Conv1d(5, 7, 3, stride=2, padding=1), torch.randn(4, 5, 9)),
    ],
)
def test_linear_layers_and_sequences(layer: nn.Linear | nn.Conv1d, inputs: Tensor) -> None:
    layer, inputs = layer.double(), inputs.double()
    rows = sample(layer, inputs, torch.Generator().manual_seed(0))
    if isinstance(layer, nn.Linear):
        expected = (layer(inputs) - layer.bias).reshape(4, -1, 7)[rows.image, rows.position, rows.output]
    else:
        expected = (layer(inputs) - layer.bias[:, None])[rows.image, rows.output, rows.position]
    assert torch.allclose(terms(layer, inputs, rows).sum(1), expected, atol=1e-10)
