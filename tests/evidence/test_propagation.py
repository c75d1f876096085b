from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.errors import NotApplicable
from autoprune.evidence.propagation import Sweep, propagate, units_of
from autoprune.graph import Structure, trace


def sent_back(
    model: nn.Module, inputs: Tensor, final: Tensor, sweep: Sweep | None = None
) -> tuple[Structure, dict[str, list[Tensor]]]:
    structure = trace(model.eval(), inputs[:2])
    return structure, propagate(model, structure, inputs, lambda weight, values: final, sweep or Sweep())


def test_by_hand_through_one_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, -1.0]]))
    _, found = sent_back(model, torch.randn(4, 2), torch.tensor([1.0, 0.5]))
    assert found["0"][0].flatten().tolist() == [2.5, 2.0, 0.5]
    assert found["2"][0].flatten().tolist() == [1.0, 0.5]


class _Net(nn.Module):
    """Strides, padding, groups, an identity and a projection shortcut, pooling and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.bn3 = nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.project, self.bn4 = nn.Conv2d(8, 6, 1, stride=2), nn.BatchNorm2d(6)
        self.head, self.last = nn.Linear(24, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        x = torch.relu(self.bn3(self.down(x)) + self.bn4(self.project(x)))
        x = F.max_pool2d(x, 2).flatten(1)
        return self.last(torch.relu(self.head(x)))


def _norm(bn: nn.BatchNorm2d) -> Tensor:
    return (bn.weight.abs() / (bn.running_var + bn.eps).sqrt())[:, None, None]


def _conv(conv: nn.Conv2d, score: Tensor, into: int) -> Tensor:
    """Transposed convolution, whose output padding follows from the true size of the input."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    extra = into - ((score.shape[-1] - 1) * stride - 2 * padding + kernel)
    return F.conv_transpose2d(score[None], conv.weight.abs(), None, stride, padding, extra, conv.groups)[0]


def random_net() -> _Net:
    net = _Net().double()
    for bn in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, -1, 1)
        nn.init.uniform_(bn.running_var, 0.5, 2)  # type: ignore[arg-type]
        nn.init.normal_(bn.running_mean)  # type: ignore[arg-type]
    return net


def by_unit(score: Tensor) -> Tensor:
    """(8, H, W) -> (4, 2, H, W): the stream is read by a convolution in two groups, so units are two channels each."""
    return score.unflatten(0, (2, 4)).transpose(0, 1)


def test_equals_transposed_convolutions_written_out() -> None:
    net = random_net()
    final = torch.rand(10, dtype=torch.float64)
    _, found = sent_back(net, torch.randn(4, 3, 8, 8, dtype=torch.float64), final)
    with torch.no_grad():
        flat = net.head.weight.abs().T @ final
        pooled = flat.reshape(6, 2, 2)
        spread = pooled.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
        stream = _conv(net.down, spread * _norm(net.bn3), 8) + _conv(net.project, spread * _norm(net.bn4), 8)
        inner = _conv(net.conv2, stream * _norm(net.bn2), 8)
        stem = stream + _conv(net.conv1, inner * _norm(net.bn1), 8)
    assert torch.allclose(found["head"][0].flatten(), final)
    assert all(torch.allclose(one[:, 0], spread, rtol=1e-9) for one in found["down"])
    for one, expected in zip(found["stem"], (stem, stream), strict=True):
        assert torch.allclose(one, by_unit(expected), rtol=1e-9)
    assert torch.allclose(found["conv1"][0], by_unit(inner), rtol=1e-9)


def test_equals_autograd_of_the_network_of_absolute_values() -> None:
    net = random_net()
    final = torch.rand(10, dtype=torch.float64)
    _, found = sent_back(net, torch.randn(4, 3, 8, 8, dtype=torch.float64), final)

    def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight.abs(), None, layer.stride, layer.padding, 1, layer.groups)

    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    stem = (conv(net.stem, x) * _norm(net.bn0)).requires_grad_()
    inner = conv(net.conv1, stem) * _norm(net.bn1)
    branch = conv(net.conv2, inner) * _norm(net.bn2)
    stream = stem + branch
    low = conv(net.down, stream) * _norm(net.bn3) + conv(net.project, stream) * _norm(net.bn4)
    out = F.linear(F.avg_pool2d(low, 2).flatten(1), net.head.weight.abs())
    gradients = torch.autograd.grad((out * final).sum(), [stem, inner, branch])
    assert torch.allclose(found["stem"][0], by_unit(gradients[0][0]), rtol=1e-9)
    assert torch.allclose(found["stem"][1], by_unit(gradients[2][0]), rtol=1e-9)
    assert torch.allclose(found["conv1"][0], by_unit(gradients[1][0]), rtol=1e-9)
    both = by_unit(gradients[0][0] + gradients[2][0]).sum((1, 2, 3))
    assert torch.allclose(units_of(found["stem"]), both, rtol=1e-9)


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.hidden, self.last = nn.Linear(24, 7), nn.Linear(7, 3)

    def rest(self, x: Tensor) -> Tensor:
        """From the first convolution's units to the final responses."""
        x = torch.relu(self.conv2(F.max_pool2d(x, 2)))
        return torch.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rest(torch.relu(self.conv1(x))))


def test_the_score_bounds_what_removal_does_to_the_final_responses() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(10):
        net = _Pooled().double()
        final = torch.rand(7, dtype=torch.float64)
        _, found = sent_back(net, torch.randn(4, 2, 8, 8, dtype=torch.float64), final, Sweep(pool="sum"))
        score = found["conv1"][0][:, 0]
        x = torch.randn(200, 5, 8, 8, dtype=torch.float64, generator=draws)
        mask = (torch.rand(200, 5, 1, 1, generator=draws) < 0.5).double()
        with torch.no_grad():
            changed = (net.rest(x) - net.rest(mask * x)).abs() @ final
        bound = (score * x.abs() * (1 - mask)).sum((1, 2, 3))
        assert bool((changed <= bound * (1 + 1e-9)).all())
        assert float((changed / bound.clamp_min(1e-9)).max()) > 1e-3  # and it is not idle


def test_what_only_pruned_units_read_is_worth_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight[2:, 1] = 0  # unit 1 is read by units 0 and 1 only
        model[2].weight[:2, 1] = 5
    final = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for keep_fraction, zero in ((0.5, True), (1.0, False)):
        _, found = sent_back(model, torch.randn(4, 3), final, Sweep(keep_fraction))
        assert (float(units_of(found["0"])[1]) == 0) == zero
        assert bool((units_of(found["0"])[[0, 2, 3]] > 0).all())


def test_a_stream_is_decided_by_all_its_producers_before_it_masks() -> None:
    net = random_net()
    inputs, final = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.rand(10, dtype=torch.float64)
    _, free = sent_back(net, inputs, final)
    structure, masked = sent_back(net, inputs, final, Sweep(0.5))
    assert torch.equal(units_of(masked["stem"]), units_of(free["stem"]))
    chosen = {name: units_of(free[name]).topk(n).indices.sort().values for name, n in (("stem", 2), ("down", 3))}
    chosen["head"] = final.topk(5).indices.sort().values
    small = structure.cut(net, {name: kept.tolist() for name, kept in chosen.items()})
    _, cut = sent_back(small, inputs, final[chosen["head"]])
    assert torch.allclose(units_of(masked["conv1"]), units_of(cut["conv1"]), rtol=1e-9)
    assert not torch.allclose(units_of(masked["conv1"]), units_of(free["conv1"]), rtol=1e-3)


def test_scaling_a_unit_against_its_reader_changes_its_own_score_only() -> None:
    layers = (nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    model = nn.Sequential(*layers)
    final = torch.rand(6)
    _, before = sent_back(model, torch.randn(4, 3), final)
    with torch.no_grad():
        model[2].weight[1] *= 2
        model[2].bias[1] *= 2
        model[4].weight[:, 1] /= 2
    _, after = sent_back(model, torch.randn(4, 3), final)
    factor = torch.ones(5, dtype=torch.float64)
    factor[1] = 0.5
    assert torch.allclose(units_of(after["2"]), units_of(before["2"]) * factor)
    assert torch.allclose(units_of(after["0"]), units_of(before["0"]))


class _Other(nn.Module):
    def __init__(self, operator: str) -> None:
        super().__init__()
        self.first, self.last, self.operator = nn.Linear(4, 6), nn.Linear(6, 3), operator

    def forward(self, x: Tensor) -> Tensor:
        return self.last(getattr(torch, self.operator)(self.first(x)))


def test_an_operator_without_a_rule_is_named() -> None:
    with pytest.raises(NotApplicable, match=r"aten\.cos"):
        sent_back(_Other("cos"), torch.randn(4, 4), torch.ones(6))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 8)
        self.wide, self.back, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.into(self.norm(x)).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 8))
        return self.head((x + self.back(F.gelu(self.wide(x)))).mean(1))


def test_transformers_pass_scores_through_values_and_features() -> None:
    model = _Attention()
    _, found = sent_back(model, torch.randn(4, 5, 8), torch.ones(8))
    expected = model.back.weight.detach().abs().double().T @ torch.ones(8, dtype=torch.float64)
    assert torch.allclose(units_of(found["wide"]), expected)
