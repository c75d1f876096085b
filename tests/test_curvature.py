from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.curvature import Radii, factored_layers, fisher_losses, output_rows, sharpness, watched
from autoprune.tasks import Task, classification

SQUARES = Task(
    loss=lambda output, targets: 0.5 * (output - targets).square().sum(dim=1).mean(),
    metric=lambda output, targets: (0.0, len(output)),
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def radii_of(
    model: nn.Module, inputs: Tensor, losses: Callable[[Tensor], list[Tensor]], uses: int = 20
) -> dict[str, Tensor]:
    """Return the radii once the eigenvectors have settled."""
    layers = factored_layers(model)
    radii = Radii(layers, draws())
    for _ in range(uses):
        with watched(layers) as seen:
            output = model(inputs)
        found = radii.of(seen, losses(output))
    return found


def factors(model: nn.Module, name: str, inputs: Tensor, losses: Callable[[Tensor], list[Tensor]]) -> tuple[Any, Any]:
    """Return A and G of one layer by their definition, patches unfolded."""
    layers = factored_layers(model)
    with watched(layers) as seen:
        output = model(inputs)
    ((x, s),) = seen[name]
    layer = layers[name]
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
    else:
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        rows = patches.transpose(1, 2).flatten(0, 1)
    if layer.bias is not None:
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    A = rows.T @ rows / len(x)
    gradients = [torch.autograd.grad(loss, s, retain_graph=True)[0] for loss in losses(output)]
    G = sum(output_rows(layer, g).T @ output_rows(layer, g) for g in gradients) / output_rows(layer, s).shape[0]
    return A.detach(), G


def test_the_radius_of_a_kronecker_product_is_the_product_of_radii() -> None:
    A, G = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([2.0, 0.5]))
    assert float(torch.linalg.eigvalsh(torch.kron(A, G))[-1]) == 6.0


@pytest.mark.parametrize("bias", [False, True])
def test_one_layer_with_squared_loss_is_exact(bias: bool) -> None:
    """Hessian of 0.5 mean ||W x - y||^2 is I (x) E[x x^T]; its Fisher has one loss for every output."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=bias).double()
    inputs, targets = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    found = radii_of(layer, inputs, lambda output: [one.sum() for one in output.unbind(dim=1)])[""]
    size = 4 + bias
    padded = torch.cat([inputs, torch.ones(20, 1, dtype=torch.float64)], dim=1)[:, :size]

    def loss(flat: Tensor) -> Tensor:
        return SQUARES.loss(padded @ flat.view(3, size).T, targets)

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(3 * size, dtype=torch.float64))
    assert float(found.detach()) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-10)  # type: ignore[arg-type]


def test_one_sample_with_cross_entropy_is_exact() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(5, 4, bias=False).double()
    x = torch.randn(1, 5, dtype=torch.float64)
    losses = lambda output: fisher_losses(output, torch.zeros(1).long(), classification(), "exact", draws())  # noqa: E731
    p = layer(x).detach().softmax(dim=1)[0]
    expected = torch.linalg.eigvalsh(torch.diag(p) - torch.outer(p, p))[-1] * x.square().sum()
    # the logits of the loss are single precision
    assert float(radii_of(layer, x, losses)[""].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_convolution_has_the_eigenvalues_of_its_patches() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(5, 70, (1, 3), bias=False), nn.Flatten()
    ).double()
    inputs = torch.randn(6, 2, 7, 7, dtype=torch.float64)
    losses: Any = lambda output: [output.tanh().sum()]  # noqa: E731
    found = radii_of(model, inputs, losses, uses=60)
    for name in ("0", "2"):
        A, G = factors(model, name, inputs, losses)
        expected = torch.linalg.eigvalsh(A)[-1] * torch.linalg.eigvalsh(G)[-1]
        assert float(found[name].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_penalty_has_the_gradient_of_the_radius_in_all_layers() -> None:
    """Against central differences, eigenvectors found anew for each."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3
    losses: Any = lambda output: [F.cross_entropy(output, labels, reduction="sum")]  # noqa: E731

    def exact(name: str) -> Tensor:
        A, G = factors(model, name, inputs, losses)
        return torch.linalg.eigvalsh(A)[-1] * torch.linalg.eigvalsh(G)[-1]

    weights = [model[0].weight, model[2].weight]
    for name in ("0", "2"):
        found = torch.autograd.grad(radii_of(model, inputs, losses, uses=80)[name], weights, materialize_grads=True)
        for weight, gradient in zip(weights, found, strict=True):
            assert float(gradient.abs().max()) > 1e-4  # type: ignore[attr-defined]
            for at in ((0, 0), (2, 1)):
                values = []
                for step in (1e-6, -1e-6):
                    with torch.no_grad():
                        weight[at] += step  # type: ignore[operator]
                    values.append(float(exact(name).detach()))
                    with torch.no_grad():
                        weight[at] -= step  # type: ignore[operator]
                assert float(gradient[at]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_descent_with_the_penalty_ends_in_the_flat_minimum() -> None:
    """1/2 (w1 w2 - 1)^2: rho are w2^2 and w1^2. The largest, times 0.01, leaves w^2 = 1 - 0.01 and a loss of 5e-5."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    layers = factored_layers(model)
    with torch.no_grad():
        model[0].weight.fill_(1.6)  # type: ignore[operator]
        model[1].weight.fill_(0.6)  # type: ignore[operator]
    radii, one = Radii(layers, draws()), torch.ones(1, 1, dtype=torch.float64)
    for _ in range(1500):
        with watched(layers) as seen:
            output = model(one)
        found = torch.stack(list(radii.of(seen, [output.sum()]).values()))
        loss = 0.5 * (output - 1).square().sum()
        gradients = torch.autograd.grad(loss + 0.01 * found.max(), list(model.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= 0.1 * gradient
    squares = [float(w.detach().square()) for w in model.parameters()]
    assert max(squares) == pytest.approx(0.99, rel=0.02)
    assert float(loss.detach()) == pytest.approx(5e-5, rel=0.1)


def test_sampled_and_true_labels() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-40.0, 40.0]], requires_grad=True)
    targets = torch.tensor([1, 1, 1])
    (true,) = fisher_losses(logits, targets, classification(), "empirical", draws())
    assert float(true.detach()) == pytest.approx(float(F.cross_entropy(logits, targets, reduction="sum").detach()))
    (drawn,) = fisher_losses(logits, targets, classification(), "sampled", draws())
    gradient = torch.autograd.grad(drawn, logits)[0]
    assert torch.allclose(gradient[2], torch.zeros(2), atol=1e-6)  # its label is certain
    (again,) = fisher_losses(logits, targets, classification(), "sampled", draws())
    assert float(again.detach()) == float(drawn.detach())


def test_watching_changes_nothing_and_survives_activations_in_place() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    plain = model(inputs)
    with watched(factored_layers(model)) as seen:
        output = model(inputs)
    assert torch.equal(output, plain)
    assert float(seen["0"][0][1].detach().min()) < 0  # before the relu
    gradient = torch.autograd.grad(output.sum(), seen["0"][0][1])[0]
    assert gradient.shape == (5, 4)
    assert not model[0]._forward_hooks


def test_sharpness_is_the_top_eigenvalue_of_the_hessian() -> None:
    layer = nn.Linear(2, 1, bias=False)
    inputs = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    found = sharpness(layer, SQUARES, inputs, torch.zeros(2, 1), draws(), iterations=40)
    assert found == pytest.approx(4.5, rel=1e-4)
