"""Bounds worked by hand, and held against everything that can be tried on tiny networks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.certified.bounds import Bounded
from autoprune.certified.box import Interval, box_around
from autoprune.data.images import Pixels
from autoprune.errors import NotApplicable
from autoprune.graph import trace
from autoprune.models import build_model


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def two_layers() -> nn.Sequential:
    return nn.Sequential(
        linear([[1, -1], [2, 0]], [0, -1]), nn.ReLU(), linear([[1, 1], [-1, 2]], [0, 0])
    ).eval()  # fmt: skip


POINT = torch.tensor([[0.5, 0.25]], dtype=torch.float64)


def test_intervals_and_margins_by_hand() -> None:
    found = Bounded(two_layers(), POINT.repeat(2, 1)).on(box_around(POINT, 0.25, None))
    (read,) = found.pre_activations
    assert (read.interval.low.tolist(), read.interval.high.tolist()) == ([[-0.25, -0.5]], [[0.75, 0.5]])
    assert (found.output.low.tolist(), found.output.high.tolist()) == ([[0.0, -0.75]], [[1.25, 1.0]])
    # inside the last layer: row (2, -1) on [0, 0.75] x [0, 0.5]; of separate bounds 0 - 1
    assert found.margins(torch.tensor([0])).tolist() == [[0.0, -0.5]]
    assert found.output.low[0, 0] - found.output.high[0, 1] == -1.0


def test_a_single_linear_layer_is_bounded_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double().eval()
    x = torch.randn(2, 5, dtype=torch.float64)
    found = Bounded(model, x).on(box_around(x, 0.3, None))
    corners = torch.tensor(list(itertools.product((-0.3, 0.3), repeat=5)), dtype=torch.float64)
    outputs = model(x[:, None] + corners)
    assert torch.allclose(found.output.low, outputs.amin(1))
    assert torch.allclose(found.output.high, outputs.amax(1))
    labels = torch.tensor([2, 0])
    margins = outputs.gather(2, labels.view(2, 1, 1).expand(2, 32, 1)) - outputs
    assert torch.allclose(found.margins(labels), margins.amin(1))


class Everything(nn.Module):
    """Convolution with groups and stride, norm, residual sum, concatenation, slices, padding, pooling of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.act, self.max, self.head = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Linear(12, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.norm1(self.conv1(x)))
        b = self.act(self.norm2(self.conv2(a)) + a)
        b = b - 0.5 * a
        c = torch.cat([b, nn.functional.pad(x[:, :1], (0, 0, 0, 0, 0, 1))], 1)
        pooled = self.max(c) / 2 - nn.functional.avg_pool2d(c, 2)
        flat = torch.cat([pooled.mean((2, 3)), nn.functional.adaptive_avg_pool2d(-pooled, 1).flatten(1)], 1)
        return self.head(self.drop(flat))  # type: ignore[no-any-return]


def shaken(model: nn.Module) -> nn.Module:
    """Give norms statistics, scales and shifts of any sign."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return model.double().eval()


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "everything": (Everything, (2, 4, 4)),
    "digits_resnet": (lambda: build_model({"name": "digits_resnet"}, 10, seed=0), (1, 8, 8)),
    "resnet20_cifar": (lambda: build_model({"name": "resnet20_cifar"}, 10, seed=0), (3, 16, 16)),
    "vgg16_bn_cifar": (lambda: build_model({"name": "vgg16_bn_cifar"}, 10, seed=0), (3, 32, 32)),
    "lenet": (lambda: build_model({"name": "lenet"}, 10, seed=0), (1, 28, 28)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_input_of_the_box_leaves_the_bounds(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = shaken(make())
    x = torch.rand(2, *shape, dtype=torch.float64)
    bounded = Bounded(model, x)
    labels = torch.tensor([1, 2])
    before = None
    for epsilon in (0.001, 0.05):
        box = box_around(x, epsilon, Pixels())
        found = bounded.on(box)
        margins = found.margins(labels)
        for inputs in tried(model, box, labels):
            outputs = model(inputs)
            assert (outputs >= found.output.low - 1e-9).all()
            assert (outputs <= found.output.high + 1e-9).all()
            assert (outputs.gather(1, labels[:, None]) - outputs >= margins - 1e-9).all()
        if before is not None:
            assert (found.output.low <= before.output.low + 1e-12).all()
            assert (found.output.high >= before.output.high - 1e-12).all()
            assert (margins <= before.margins(labels) + 1e-12).all()
        before = found


def tried(model: nn.Module, box: Interval, labels: Tensor) -> list[Tensor]:
    """Return random points and corners of the box, and the corners that gradients of the margins point to."""
    points = [box.low, box.high]
    for _ in range(40):
        share = torch.rand_like(box.low)
        points += [box.low + share * (box.high - box.low), torch.where(share < 0.5, box.low, box.high)]
    for target in range(3):
        now = box.middle.clone()
        for _ in range(3):
            now.requires_grad_(True)
            outputs = model(now)
            loss = (outputs.gather(1, labels[:, None])[:, 0] - outputs[:, target]).sum()
            (slope,) = torch.autograd.grad(loss, now)
            now = torch.where(slope > 0, box.low, box.high).detach()
            points.append(now)
    return [point.detach() for point in points]


@pytest.mark.parametrize("name", NETWORKS)
def test_without_width_the_bounds_are_the_forward_pass(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = shaken(make())
    x = torch.rand(3, *shape, dtype=torch.float64)
    found = Bounded(model, x[:2]).on(box_around(x, 0.0, None))
    assert torch.allclose(found.output.low, model(x), atol=1e-9)
    assert torch.allclose(found.output.high, model(x), atol=1e-9)


def test_every_value_inside_lies_within_its_bounds() -> None:
    torch.manual_seed(0)
    model = shaken(Everything())
    model.act = nn.ReLU()
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    box = box_around(x, 0.1, None)
    found = Bounded(model, x.repeat(2, 1, 1, 1)).on(box).pre_activations
    seen: list[Tensor] = []
    model.act.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    many = box.low + torch.rand(1000, 2, 4, 4, dtype=torch.float64) * (box.high - box.low)
    model(many)
    assert len(found) == len(seen) == 2
    for bounds, values in zip(found, seen, strict=True):
        assert (values >= bounds.interval.low - 1e-9).all()
        assert (values <= bounds.interval.high + 1e-9).all()
    # the first reads a norm, the second a sum
    assert torch.equal(found[0].scale, model.norm1.weight)  # type: ignore[arg-type]
    assert found[1].scale is None


def test_zeroing_a_weight_never_widens_what_its_layer_gives() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    x = torch.randn(2, 6, dtype=torch.float64)
    bounded, box = Bounded(model, x), box_around(x, 0.2, None)
    before = bounded.on(box).output.radius
    for row, column in itertools.product(range(4), range(6)):
        kept = float(model.weight.detach()[row, column])
        with torch.no_grad():
            model.weight[row, column] = 0.0
            assert (bounded.on(box).output.radius <= before + 1e-12).all()
            model.weight[row, column] = kept


def test_a_cut_model_has_the_bounds_of_the_one_whose_units_are_zero() -> None:
    model = shaken(build_model({"name": "digits_resnet"}, 10, seed=0)).float()
    x = torch.rand(2, 1, 8, 8)
    structure = trace(model, x)
    keep = {name: list(range(0, size, 2)) for name, size in zip(structure.names, structure.group_sizes, strict=True)}
    small = structure.cut(model, keep).double()
    zeroed = model.double()
    with torch.no_grad():
        for group in structure.groups:
            gone = [u for u in range(group.size) if u not in keep[group.name]]
            for place in group.producers:
                weight = zeroed.get_parameter(place.tensor)
                weight[torch.from_numpy(place.indices[gone].flatten())] = 0.0
    zero_norms(zeroed, structure, keep)
    box = box_around(x.double(), 0.02, Pixels())
    narrow, wide = Bounded(small, x.double()).on(box), Bounded(zeroed, x.double()).on(box)
    assert torch.allclose(narrow.output.low, wide.output.low, atol=1e-9)
    assert torch.allclose(narrow.output.high, wide.output.high, atol=1e-9)
    labels = torch.tensor([3, 4])
    assert torch.allclose(narrow.margins(labels), wide.margins(labels), atol=1e-9)


def zero_norms(model: nn.Module, structure: Any, keep: dict[str, list[int]]) -> None:
    from autoprune.graph import Role

    with torch.no_grad():
        for group in structure.groups:
            gone = [u for u in range(group.size) if u not in keep[group.name]]
            for role in (Role.NORM_WEIGHT, Role.NORM_BIAS):
                for place in group.places_with(role):
                    model.get_parameter(place.tensor)[torch.from_numpy(place.indices[gone].flatten())] = 0.0


def test_pixels_are_clipped_before_they_are_normalised() -> None:
    raw = torch.tensor([0.0, 0.5, 0.98]).view(1, 3, 1, 1)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    wide = (1, 3, 1, 1)
    inputs = (raw - torch.tensor(mean).view(wide)) / torch.tensor(std).view(wide)
    box = box_around(inputs, 0.1, Pixels(mean, std))
    # raw boxes [0, 0.1], [0.4, 0.6], [0.88, 1]
    assert box.low.flatten().tolist() == pytest.approx([-0.5 / 0.2, 0.0, 0.58 / 0.5], abs=1e-6)
    assert box.high.flatten().tolist() == pytest.approx([-0.4 / 0.2, 0.2 / 0.25, 0.7 / 0.5], abs=1e-6)
    plain = box_around(raw, 0.1, Pixels())
    assert plain.low.flatten().tolist() == pytest.approx([0.0, 0.4, 0.88])
    assert plain.high.flatten().tolist() == pytest.approx([0.1, 0.6, 1.0])


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, 1)


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), Softmax()), torch.zeros(2, 4), "operator softmax in 1 has no rule"),
        (
            nn.Sequential(nn.Linear(4, 3), Squared()),
            torch.zeros(2, 4),
            "operator mul in 1: a product of two activations",
        ),
        (nn.Conv2d(1, 2, 1), torch.zeros(2, 1, 4, 4), r"one tensor of logits, \(N, classes\)"),
        (nn.Linear(4, 3), (torch.zeros(2, 4),), "one tensor of real numbers; this one takes tuple"),
    ],
)
def test_what_cannot_be_bounded_is_named(model: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        Bounded(model.eval(), inputs)


def test_the_model_stays_as_it_is_and_gradients_reach_its_weights() -> None:
    model = build_model({"name": "digits_resnet"}, 10, seed=0).train()
    x = torch.rand(2, 1, 8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bounded = Bounded(model, x)
    bounded.on(box_around(x, 0.05, Pixels())).output.high.sum().backward()
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
