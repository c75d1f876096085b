"""Kronecker-factored curvature of the loss, layer by layer. Martens and Grosse 2015, arXiv 1503.05671 (K-FAC).

    A = (1 / B) * sum over samples and positions of abar abar^T        (M, M)
    G = (1 / (B T)) * sum over samples and positions of g g^T          (N, N),    H ~ A (x) G

B samples, T positions of a convolution (arXiv 1602.01407), abar the M = inputs * kernel values that one output reads,
with a 1 behind them where the layer has a bias, g (N) the gradient of one sample's loss by the layer's outputs. The
largest eigenvalue of a Kronecker product of such factors is the product of theirs. Grouped and transposed convolutions
have no such factors here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.tasks import Task, batch_length, forward, logits_of

Fisher = Literal["sampled", "empirical", "exact"]
Calls = list[tuple[Tensor, Tensor]]
"""What a layer was given and gave, once for every call."""

_FIRST, _LATER = 20, 3
"""Power iterations at the first use and at later ones, which go on from the vector before."""
_DECOMPOSED = 64
"""A matrix of outputs that is smaller is decomposed instead."""
_TINY = 1e-30


def factored_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that have factors, by name."""
    return {name: m for name, m in model.named_modules() if has_factors(m)}


def has_factors(module: nn.Module) -> bool:
    """Say whether a module is a linear layer or an ungrouped convolution."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1


@contextmanager
def watched(layers: Mapping[str, Any]) -> Iterator[dict[str, Calls]]:
    """Collect what layers read and write while the model runs, each as a tensor that can be differentiated by.

    Layers that are not called have no entry.
    """
    seen: dict[str, Calls] = {}
    handles = []

    def own(module: nn.Module, given: tuple[Tensor, ...]) -> Any:
        # a copy for every reader, so that gradients of one of several readers can be told apart
        return (given[0].clone(), *given[1:])

    for name, layer in layers.items():

        def keep(module: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name) -> Tensor:
            seen.setdefault(name, []).append((given[0], output))
            return output.clone()  # an activation in place would change what was kept

        handles += [layer.register_forward_pre_hook(own), layer.register_forward_hook(keep)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def fisher_losses(output: Any, targets: Any, task: Task, fisher: Fisher, draws: torch.Generator) -> list[Tensor]:
    """Return scalars, sums over samples, whose gradients g of single samples make the curvature sum of g g^T.

    sampled: one, with labels drawn from the model's own output, which are constants. exact: one for every class, the
    expectation over those draws. empirical, and for tasks other than classification: one, with the true labels.
    """
    size = batch_length(targets)
    if fisher == "empirical" or not task.classification:
        return [task.loss(output, targets) * size]
    logits = logits_of(output).float()
    shares = logits.detach().softmax(dim=1)
    if fisher == "exact":
        losses = -logits.log_softmax(dim=1) * shares.sqrt()
        return [one.reshape(size, -1).mean(dim=1).sum() for one in losses.unbind(dim=1)]
    rows = shares.movedim(1, -1)
    labels = torch.multinomial(rows.reshape(-1, rows.shape[-1]).cpu(), 1, generator=draws)
    return [F.cross_entropy(logits, labels.view(rows.shape[:-1]).to(logits.device)) * size]


def output_rows(layer: Any, values: Tensor) -> Tensor:
    """Return outputs, or gradients by them, as rows (samples * positions, N)."""
    moved = values if isinstance(layer, nn.Linear) else values.movedim(1, -1)
    return moved.reshape(-1, moved.shape[-1])


class Radii:
    """The spectral radii of the layers' curvature over a training, by their top eigenvectors so far."""

    def __init__(self, layers: Mapping[str, Any], draws: torch.Generator) -> None:
        self._layers, self._draws = layers, draws
        self._reading: dict[str, list[Tensor]] = {}
        self._writing: dict[str, Tensor] = {}

    def of(self, seen: Mapping[str, Calls], losses: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return lmax(A) * lmax(G) of every layer seen, differentiable by the model's parameters.

        With eigenvectors that lag behind, the values are lower bounds (Rayleigh quotients). They are constants.
        """
        outputs = [output for calls in seen.values() for _, output in calls]
        by_loss = [torch.autograd.grad(loss, outputs, create_graph=True, materialize_grads=True) for loss in losses]
        found, start = {}, 0
        for name, calls in seen.items():
            gradients = [by[start + i] for by in by_loss for i in range(len(calls))]
            start += len(calls)
            found[name] = self._of(name, calls, gradients)
        return found

    def _of(self, name: str, calls: Calls, gradients: Sequence[Tensor]) -> Tensor:
        layer, size = self._layers[name], len(calls[0][1])
        rows = torch.cat([output_rows(layer, g) for g in gradients])
        positions = sum(len(output_rows(layer, output)) for _, output in calls)  # of all samples: B T
        given = [x for x, _ in calls]
        u, v = self._follow_reading(name, layer, given), self._follow_writing(name, rows.detach())
        read = torch.stack([_project(layer, x, u).square().sum() for x in given]).sum() / size
        return read * (rows @ v).square().sum() / positions

    def _follow_reading(self, name: str, layer: Any, given: Sequence[Tensor]) -> list[Tensor]:
        known = self._reading.get(name)
        u = known or [torch.randn(1, *layer.weight.shape[1:], generator=self._draws).to(layer.weight)]
        if known is None and layer.bias is not None:
            u.append(torch.ones(1).to(u[0]))
        u = _unit(u)
        for _ in range(_LATER if known else _FIRST):
            with torch.enable_grad():
                leaves = [part.detach().requires_grad_() for part in u]
                value = torch.stack([_project(layer, x.detach(), leaves).square().sum() for x in given]).sum() / 2
                u = _unit(torch.autograd.grad(value, leaves))
        self._reading[name] = u
        return u

    @torch.no_grad()
    def _follow_writing(self, name: str, rows: Tensor) -> Tensor:
        G_NN = rows.T @ rows
        if len(G_NN) < _DECOMPOSED:
            v_N: Tensor = torch.linalg.eigh(G_NN)[1][:, -1]
        else:
            known = self._writing.get(name)
            v_N = torch.randn(len(G_NN), generator=self._draws).to(G_NN) if known is None else known
            for _ in range(_LATER if known is not None else _FIRST):
                v_N = _unit([G_NN @ v_N])[0]
        self._writing[name] = v_N
        return v_N


def _project(layer: Any, x: Tensor, u: Sequence[Tensor]) -> Tensor:
    """Return u . abar at every sample and position."""
    product: Tensor = F.linear(x, u[0]) if isinstance(layer, nn.Linear) else layer._conv_forward(x, u[0], None)
    return product + u[1] if len(u) > 1 else product


def _unit(parts: Sequence[Tensor]) -> list[Tensor]:
    length = torch.stack([part.square().sum() for part in parts]).sum().sqrt()
    return [part / (length + _TINY) for part in parts]


def sharpness(
    model: nn.Module, task: Task, inputs: Any, targets: Any, draws: torch.Generator, iterations: int = 20
) -> float:
    """Return the largest eigenvalue in size of the Hessian of the mean loss, by power iteration; the mode stays."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = task.loss(forward(model, inputs), targets)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    v = _unit([torch.randn(p.shape, generator=draws).to(p) for p in parameters])
    value = 0.0
    for _ in range(iterations):
        along = torch.stack([(g * part).sum() for g, part in zip(gradients, v, strict=True)]).sum()
        product = torch.autograd.grad(along, parameters, retain_graph=True, materialize_grads=True)
        value = float(torch.stack([(h * part).sum() for h, part in zip(product, v, strict=True)]).sum())
        v = _unit(product)
    return value
