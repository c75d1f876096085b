from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.recovery.compensation import Compensation

MakeCut = Callable[..., tuple[nn.Module, nn.Module, Any, Tensor]]


def two_layers(inputs_to_middle: list[list[float]], middle_to_output: list[list[float]]) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(len(inputs_to_middle[0]), 3, bias=False), nn.Identity(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(inputs_to_middle))
        model[2].weight.copy_(torch.tensor(middle_to_output))
        model[2].bias.zero_()
    return model


def test_a_redundant_channel_is_taken_over_exactly(make_cut: MakeCut) -> None:
    """The middle is (x1, 2 x1, x3): without its second unit the weights become [[3, 1], [-1.5, 2]]."""
    model = two_layers([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [[1.0, 1.0, 1.0], [0.5, -1.0, 2.0]])
    inputs = torch.randn(40, 2, dtype=torch.float64)
    for rescale in ("on", "off"):
        base, cut, context, _ = make_cut(model, inputs, {"0": [0, 2]})
        Compensation(rescale=rescale).recover(cut, context, 0.0)
        expected = torch.tensor([[3.0, 1.0], [-1.5, 2.0]], dtype=torch.float64)
        assert torch.allclose(cut[2].weight, expected, atol=1e-9)  # type: ignore[index]
        assert torch.allclose(cut[2].bias, torch.zeros(2, dtype=torch.float64), atol=1e-9)  # type: ignore[index]
        assert torch.allclose(cut(inputs), base(inputs), atol=1e-9)


def test_a_constant_channel_goes_into_the_bias(make_cut: MakeCut) -> None:
    """The middle is (x1, 3, x3): columns stay, the bias takes 3 * (1, -1)."""
    model = two_layers([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0, 1.0], [0.5, -1.0, 2.0]])
    model[0].bias = nn.Parameter(torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64))
    base, cut, context, inputs = make_cut(model, torch.randn(40, 2, dtype=torch.float64), {"0": [0, 2]})
    Compensation().recover(cut, context, 0.0)
    assert torch.allclose(cut[2].weight, model[2].weight[:, [0, 2]], atol=1e-9)  # type: ignore[index]
    assert torch.allclose(cut[2].bias, torch.tensor([3.0, -3.0], dtype=torch.float64), atol=1e-9)  # type: ignore[index]
    assert torch.allclose(cut(inputs), base(inputs), atol=1e-9)


def test_it_is_the_least_squares_solution_with_an_intercept(make_cut: MakeCut) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    base, cut, context, inputs = make_cut(model, torch.randn(300, 4, dtype=torch.float64), {"0": [0, 1, 4]})
    Compensation(rescale="off").recover(cut, context, 0.0)
    middle = torch.relu(model[0](inputs)).detach()
    design = torch.cat([middle[:, [0, 1, 4]], torch.ones(300, 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, base(inputs).detach()).solution
    assert torch.allclose(cut[2].weight, solution[:3].T, atol=1e-8)  # type: ignore[index]
    assert torch.allclose(cut[2].bias, solution[3], atol=1e-8)  # type: ignore[index]


def test_rescaling_restores_mean_and_variance_at_the_price_of_a_larger_error(make_cut: MakeCut) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inputs = torch.randn(300, 4, dtype=torch.float64)
    errors = []
    for rescale in ("off", "on"):
        base, cut, context, _ = make_cut(model, inputs, {"0": [0, 1, 4]})
        Compensation(rescale=rescale).recover(cut, context, 0.0)
        errors.append((cut(inputs) - base(inputs)).square().mean().item())
    assert torch.allclose(cut(inputs).mean(0), base(inputs).mean(0), atol=1e-8)
    assert torch.allclose(cut(inputs).var(0), base(inputs).var(0), rtol=1e-8)
    assert errors[0] < errors[1]


def test_duplicated_filters_are_removed_without_a_trace(make_cut: MakeCut) -> None:
    """Half of the first convolution's filters, with their norms, are copies of the other half; borders included."""
    torch.manual_seed(2)
    head = (nn.Flatten(), nn.Linear(4 * 36, 4))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), *head
    ).eval()
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[1].parameters(), model[1].running_mean, model[1].running_var):
            tensor.copy_(torch.rand_like(tensor) + 0.2)
            tensor[4:] = tensor[:4]
    base, cut, context, inputs = make_cut(model, torch.randn(64, 3, 6, 6), {"0": [0, 1, 6, 7]})
    assert (cut(inputs) - base(inputs)).abs().max() > 0.1
    Compensation(rescale="off").recover(cut, context, 0.0)
    assert (cut(inputs) - base(inputs)).abs().max() < 1e-3 * base(inputs).abs().max()


@pytest.mark.parametrize("kept", [[0], [1, 3]])
def test_channels_without_any_variance_leave_the_weights_as_they_are(make_cut: MakeCut, kept: list[int]) -> None:
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight.zero_()
    _, cut, context, inputs = make_cut(model, torch.randn(20, 2, dtype=torch.float64), {"0": kept})
    Compensation().recover(cut, context, 0.0)
    assert torch.equal(cut[2].weight, model[2].weight[:, kept])  # type: ignore[index]
    assert bool(cut(inputs).isfinite().all())


def test_a_fifth_of_the_error_goes_at_least(make_cut: MakeCut) -> None:
    base, cut, context, inputs = make_cut()
    before = (cut(inputs) - base(inputs)).square().mean().item()
    Compensation().recover(cut, context, 0.0)
    assert (cut(inputs) - base(inputs)).square().mean().item() < 0.8 * before
