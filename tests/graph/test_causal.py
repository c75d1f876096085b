"""Exports of nn.Transformer do not look into masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules import transformer

from autoprune.graph import causal


def test_named_masks_only_are_causal_while_exporting() -> None:
    before = transformer._detect_is_causal_mask
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    assert before(mask, None, 4) is True
    with causal.undetected():
        detect = transformer._detect_is_causal_mask
        assert [detect(mask, given, 4) for given in (None, False, True)] == [False, False, True]
        assert detect(None, None, 4) is False
    assert transformer._detect_is_causal_mask is before


def test_torch_is_as_before_after_an_error() -> None:
    before = transformer._detect_is_causal_mask
    with pytest.raises(ValueError, match="mine"), causal.undetected():
        raise ValueError("mine")
    assert transformer._detect_is_causal_mask is before


def test_torch_that_does_not_look_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformer, "_detect_is_causal_mask")
    with causal.undetected():
        assert not hasattr(transformer, "_detect_is_causal_mask")


def test_mask_adds_the_same_either_way() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x, mask = torch.randn(2, 4, 8), nn.Transformer.generate_square_subsequent_mask(4)
    with torch.no_grad():
        torch.testing.assert_close(model(x, mask), model(x, mask, is_causal=False))
