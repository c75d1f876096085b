"""Which published models can be cut: every one traced, verified, cut to half and checked, in a process of its own.

    python benchmarks/coverage.py [--out coverage.jsonl] [--only 'torchvision/*'] [--limit 300] [--torch-pruning]
    python benchmarks/coverage_report.py coverage.jsonl --torch-pruning tp.jsonl > docs/coverage.md

All torchvision classification and segmentation models and the timm models of `coverage_models.py`, with random
weights (nothing is downloaded). Finished models in --out are not run again, so an interrupted run goes on where it
stopped. --again runs them anyway; --workers runs several at once. --torch-pruning needs an --out of its own.
Limits are seconds of processor time, so that a busy machine changes no result; a tenfold wall time ends a run too.

exact: cut equals masked in float64 within 1e-9 (1e-4 where only float32 runs), FLOPs and parameters as predicted,
every parameter that had a gradient still has one, shapes kept in training, state_dict round trip.

tensors, memory: the most that tensors, and the whole process, hold while tracing and verifying, beyond what was held
before and beyond one forward pass of the model as it is, in sizes of the model's parameters and buffers
(`resident.py`; memory on Linux only). Tensors are counted where the process holds more than three sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TABLE = (
    ("exact", "exact"), ("prunable", "prunable"), ("half_flops", "at half"), ("groups", "groups"),
    ("trace_cpu_s", "trace s"), ("verify_cpu_s", "verify s"), ("copy_ms", "copy ms"), ("cut_ms", "cut ms"),
)  # fmt: skip


_ALLOWED = 3
"""Sizes of the model that tracing and verifying may hold, beyond one forward pass."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("--only", default="*", help="glob of torchvision/<name> or timm/<name>")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of processor time for each model")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run what --out already holds")
    parser.add_argument("--torch-pruning", action="store_true", help="the same with Torch-Pruning, if installed")
    parser.add_argument("--summary", action="store_true", help="only print the table of --out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        resource.setrlimit(resource.RLIMIT_CPU, (int(options.limit), int(options.limit) + 5))
        print("RESULT " + json.dumps(_child(options.child, options.torch_pruning)))
        return
    if not options.summary:
        _run_all(options)
    _summary(read(options.out))


def _run_all(options: argparse.Namespace) -> None:
    from coverage_models import names

    done = set() if options.again else {row["model"] for row in read(options.out)}
    wanted = [name for name in names() if fnmatch(name, options.only) and name not in done]
    with ThreadPoolExecutor(options.workers) as pool, options.out.open("a") as out:
        for row in pool.map(lambda name: _measured(name, options), wanted):
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(_line(row), flush=True)


def _measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--limit", str(options.limit)]
    command += ["--torch-pruning"] if options.torch_pruning else []
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10 * options.limit, env=environment)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        row = json.loads(lines[-1][7:]) if lines else {"error": f"exit status {done.returncode}: {last}"}
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and not lines:
            row = {"error": f"more than {options.limit:g} s, or killed"}
    except subprocess.TimeoutExpired:
        row = {"error": f"more than {10 * options.limit:g} s of wall time"}
    return {"model": name, **row, "seconds": round(time.perf_counter() - start, 1), "commit": _commit()}


def _commit() -> str:
    """The state of the engine, with a + when files were changed since."""
    folder = Path(__file__).parent
    run = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--match", "no-tag"]
    return subprocess.run(run, capture_output=True, text=True).stdout.strip() or "unknown"


def _child(name: str, torch_pruning: bool) -> dict[str, Any]:
    """Measure one model in this process."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    from coverage_models import build

    if torch_pruning:
        from coverage_torch_pruning import half

        return half(*build(name))
    return _autoprune(*build(name))


def _autoprune(model: Any, example: Any) -> dict[str, Any]:
    import copy

    from resident import beyond_forward, tensors_beyond_forward

    from autoprune.errors import AutopruneError
    from autoprune.graph import trace

    model.eval()
    row: dict[str, Any] = {"input": list(example.shape), "versions": _versions()}
    found = []

    def work() -> None:
        with _timed(row, "both"), _verification_timed(row):
            found.append(trace(model, example))

    try:
        memory, size = beyond_forward(model, example, work)
    except AutopruneError as error:
        return {**row, "error": f"{type(error).__name__}: {error}"}
    (structure,) = found
    row["memory"], row["model_mib"] = round(memory, 2), round(size / 2**20, 1)
    if memory > _ALLOWED:
        # a second trace, to tell the model's tensors from what a process holds besides
        tensors, forward = tensors_beyond_forward(model, example, lambda: trace(model, example))
        row["tensors"], row["forward"] = round(tensors, 2), round(forward, 2)
    for unit in ("s", "cpu_s"):
        row[f"trace_{unit}"] = round(row.pop(f"both_{unit}") - row[f"verify_{unit}"], 2)
    keep = {name: list(range(0, size, 2)) for name, size in zip(structure.names, structure.group_sizes, strict=True)}
    for key, work in (("copy_ms", lambda: copy.deepcopy(model)), ("cut_ms", lambda: structure.cut(model, keep))):
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(1e3 * (time.process_time() - start))
        row[key] = round(sorted(times)[2], 1)
    full = structure.total_flops(structure.sizes)
    row["parameters"] = structure.params()
    row["gflops"] = round(full / 1e9, 3)
    row["groups"] = len(structure.names)
    row["kinds"] = {kind: sum(group.kind == kind for group in structure.groups) for kind in _kinds(structure)}
    row["prunable"] = round(1 - structure.reachable_flops[0], 3)
    row["half_flops"] = round(structure.flops(0.5) / full, 3)
    row["half_params"] = round(structure.params(0.5) / structure.params(), 3)
    row["verified"] = structure.verified
    row["unsupported"] = list(structure.unsupported)
    row["frozen"] = _reasons(structure)
    row["wrong"] = _checked(model, example, structure)
    row["exact"] = not row["wrong"]
    return row


def _kinds(structure: Any) -> list[str]:
    return sorted({group.kind for group in structure.groups})


@contextlib.contextmanager
def _timed(row: dict[str, Any], key: str) -> Iterator[None]:
    """Note wall and processor seconds."""
    start, work = time.perf_counter(), time.process_time()
    yield
    row[f"{key}_s"] = round(time.perf_counter() - start, 2)
    row[f"{key}_cpu_s"] = round(time.process_time() - work, 2)


@contextlib.contextmanager
def _verification_timed(row: dict[str, Any]) -> Iterator[None]:
    """Time the verification inside a trace."""
    from autoprune.graph import verify

    original = verify.verified

    def verified(*args: Any) -> Any:
        with _timed(row, "verify"):
            return original(*args)

    verify.verified = verified
    try:
        yield
    finally:
        verify.verified = original


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "torchvision", "timm")}


def _reasons(structure: Any) -> dict[str, int]:
    """Why channels are frozen: operator and reason -> number of units."""
    found: dict[str, int] = {}
    for item in structure.frozen:
        key = f"{item.operator}: {item.reason}"[:160]
        found[key] = found.get(key, 0) + item.size
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:8])


def _checked(model: Any, example: Any, structure: Any) -> list[str]:
    """Everything that is wrong with a random cut of this model."""
    import copy

    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from autoprune.graph import verify

    generator = np.random.default_rng(1)
    keep = {
        name: np.sort(generator.choice(size, max(1, size // 2), replace=False))
        for name, size in zip(structure.names, structure.group_sizes, strict=True)
    }
    wrong = []
    before = [p.detach().clone() for p in model.parameters()] if structure.params() < 2e8 else []
    with torch.no_grad():
        bench = verify.Bench.build(model, ((example,), {}))
        small = structure.cut(bench.model, keep)
        cut = verify.leaves(small(*bench.inputs[0]))
        masked = structure.mask(bench.model, keep)
        full = verify.leaves(masked(*bench.inputs[0]))
        del masked
    error = max((verify.relative_error(a, b) for a, b in zip(cut, full, strict=True)), default=0.0)
    if not error <= verify.TOLERANCE[bench.precision]:
        wrong.append(f"cut and masked differ by {error:.1e}")
    del bench, small, cut, full
    small = structure.cut(model, keep)
    # The counter's module tracker cannot stand parameters that want gradients as inputs of modules.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(small).requires_grad_(False)(example)
    if counter.get_total_flops() != structure.flops(keep):
        wrong.append(f"FLOPs {counter.get_total_flops()}, predicted {structure.flops(keep)}")
    if sum(p.numel() for p in small.parameters()) != structure.params(keep):
        wrong.append("parameters are not as predicted")
    structure.cut(model, keep).load_state_dict(small.state_dict())
    if structure.params() < 2e8:
        lost = _with_gradient(model, example) - _with_gradient(small, example)
        wrong.extend([f"no gradient any more: {sorted(lost)[:3]}"] if lost else [])
    if any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=False)):
        wrong.append("the model was changed")
    return wrong


def _with_gradient(model: Any, example: Any) -> set[str]:
    import torch

    from autoprune.graph import verify

    model.train()
    torch.manual_seed(0)
    try:
        outputs = verify.leaves(model(torch.cat([example, torch.randn_like(example)])))
        sum(o.float().square().mean() for o in outputs if o.is_floating_point() and o.requires_grad).backward()
    except Exception as error:
        return {f"training fails: {error}"}
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The newest row of each model."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return list({row["model"]: row for row in rows}.values())


def _line(row: dict[str, Any]) -> str:
    if "passes" in row:
        return f"{row['model']:44} passes {row['passes']} at half {row.get('half_flops')} {row.get('error', '')}"
    if "error" in row:
        return f"{row['model']:44} FAILED  {row['error'][:150]}"
    cells = " ".join(f"{title} {row.get(key)}" for key, title in TABLE)
    return f"{row['model']:44} {cells} {'; '.join(row.get('wrong', []))}"


def _summary(rows: Sequence[dict[str, Any]]) -> None:
    for source in ("torchvision", "timm"):
        mine = [row for row in rows if row["model"].startswith(source + "/")]
        if not mine:
            continue
        if "passes" in mine[0]:
            passes = [row for row in mine if row.get("passes")]
            print(f"{source}: {len(mine)} models, {len(passes)} pass with Torch-Pruning")
            continue
        good = [row for row in mine if row.get("exact")]
        half = [row for row in good if row["prunable"] >= 0.5]
        print(f"{source}: {len(mine)} models, {len(good)} exact, {len(half)} with half or more of their FLOPs prunable")
        for row in mine:
            if row not in half:
                print("  " + _line(row))
                for reason, units in list(row.get("frozen", {}).items())[:4]:
                    print(f"      {units:6} {reason}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
