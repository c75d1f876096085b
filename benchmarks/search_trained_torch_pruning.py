"""A sweep by Torch-Pruning's global pruner, trained and judged with the same code as every other search."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from criteria import bench_of_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.recovery.bn_reestimation import BnReestimation
from autoprune.recovery.finetune import Finetune
from autoprune.seeds import derive_seed
from autoprune.study.config import StudyConfig
from autoprune.tasks import evaluate

_STEPS = 12


@dataclass(frozen=True)
class Trained:
    """One model of the sweep. samples: its cost, forward samples counted as a third."""

    model: nn.Module
    accuracy: float
    flops_fraction: float
    samples: float


class Sweep:
    """Cuts the study's base model to targets and finetunes it."""

    def __init__(self, config: StudyConfig, epochs: float, seed: int) -> None:
        self._bench = bench_of_config(config)
        self._epochs, self._seed = epochs, seed
        self._example = self._bench.data.example_inputs[:1]

    def trial(self, target: float, importance: str, lr: float) -> Trained:
        """Cut, estimate batch norms anew, finetune, judge on the validation split."""
        bench = self._bench
        model, fraction, samples = self._cut(target, importance)
        context = bench.recovery_context(derive_seed(self._seed, "train"))
        spent = BnReestimation().recover(model, context, 0.0)
        spent += Finetune(lr=lr).recover(bench.laid_out(model), context, self._epochs)
        judged = evaluate(model, bench.data.validation, bench.task, bench.settings.eval_batch_size)
        samples += spent.trained_samples + (spent.forward_samples + len(bench.data.validation)) / 3
        return Trained(model, judged.accuracy, fraction, samples)

    def test_accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on all of the test split."""
        bench = self._bench
        if bench.data.test is None:
            raise SystemExit("the study's data have no test split")
        return evaluate(model, bench.data.test, bench.task, bench.settings.eval_batch_size).accuracy

    def _cut(self, target: float, importance: str) -> tuple[nn.Module, float, float]:
        """Return the model cut by the least ratio that meets the target, its FLOPs, and the samples that took."""
        few, much = 0.0, 1.0
        found: tuple[nn.Module, float] | None = None
        gradients, samples = self._gradients() if importance == "taylor" else ({}, 0.0)
        for _ in range(_STEPS):
            ratio = (few + much) / 2
            model, fraction = self._pruned(ratio, importance, gradients)
            few, much = (ratio, much) if fraction > target else (few, ratio)
            found = (model, fraction) if fraction <= target else found
        if found is None:
            raise SystemExit(f"Torch-Pruning cannot reach {target} of the FLOPs")
        return *found, samples

    def _pruned(self, ratio: float, importance: str, gradients: dict[str, torch.Tensor]) -> tuple[nn.Module, float]:
        import torch_pruning

        kinds = torch_pruning.importance
        model = copy.deepcopy(self._bench.base.model).cpu().eval()
        for name, parameter in model.named_parameters():
            parameter.grad = gradients.get(name)
        outputs = [m for m in model.modules() if isinstance(m, nn.Linear)]
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            self._example,
            importance=kinds.TaylorImportance() if importance == "taylor" else kinds.MagnitudeImportance(p=1),
            global_pruning=True,
            pruning_ratio=ratio,
            # a layer that loses everything would break the model
            max_pruning_ratio=0.9,
            ignored_layers=outputs,
        )
        pruner.step()
        model.zero_grad(set_to_none=True)
        return model, self._flops(model) / self._flops(self._bench.base.model)

    def _flops(self, model: nn.Module) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(self._example)
        return float(counter.get_total_flops())

    def _gradients(self) -> tuple[dict[str, torch.Tensor], float]:
        bench, settings = self._bench, self._bench.settings
        limit = settings.evidence_batches * settings.evidence_batch_size
        model = copy.deepcopy(bench.base.model).eval()
        for inputs, targets in bench.data.train.batches(settings.evidence_batch_size, limit=limit, device=bench.device):
            bench.task.loss(model(inputs), targets).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, float(limit)
