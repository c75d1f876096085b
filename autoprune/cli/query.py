"""The command `query`: a recipe for a target that was never searched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli import common
from autoprune.cli.results import RunArgument, read_front
from autoprune.errors import BadInput

if TYPE_CHECKING:
    from autoprune.study.learned import Oracle, Proposal
    from autoprune.study.run_folder import RunFolder


def query(
    run: RunArgument,
    target_flops: Annotated[float, typer.Option(help="Share of the base model's FLOPs.", show_default=False)],
    run_it: Annotated[bool, typer.Option("--run", help="Run the recipe too, and save the model to --out.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the model; new or empty.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Propose a recipe for a new target from what a study has learned, with predicted accuracy and its error."""
    from autoprune.recipe import Target
    from autoprune.report.selection import check_fraction
    from autoprune.study.run_folder import find_run

    check_fraction("--target-flops", target_flops)
    if run_it != (out is not None):
        raise BadInput("--run needs --out, the folder for the model, and --out needs --run")
    folder = find_run(run)
    oracle = _oracle(run, folder)
    proposal = oracle.propose(Target(flops_fraction=target_flops))
    told = _plain(proposal)
    if not as_json:
        _say(proposal, target_flops)
    if run_it and out is not None:
        told |= _run(folder, oracle, proposal, seed, out, say=typer.echo if not as_json else _silent)
    if as_json:
        common.print_json(told)


def _silent(message: str) -> None:
    """Say nothing: standard output is for JSON."""


def _oracle(run: str, folder: RunFolder) -> Oracle:
    from autoprune.report.provenance import group_sizes
    from autoprune.study.learned import Oracle

    return Oracle(read_front(run).record, group_sizes(folder.path))


def _plain(proposal: Proposal) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "recipe": dict(proposal.recipe),
        "from_trial": proposal.source,
        "predicted_accuracy": proposal.accuracy,
        "error": proposal.error,
        "held_out": asdict(proposal.fit),
    }


def _say(proposal: Proposal, target: float) -> None:
    import yaml

    from autoprune.search.surrogate import NEIGHBOURS

    fit = proposal.fit
    typer.echo(yaml.safe_dump(dict(proposal.recipe), sort_keys=False).rstrip())
    typer.echo(
        f"# from trial {proposal.source}, for {target:g} of the FLOPs. Predicted validation accuracy "
        f"{100 * proposal.accuracy:.2f} ± {100 * proposal.error:.2f} % (root mean square error of the "
        f"{NEIGHBOURS} held-out "
        f"trials predicted nearest to it;\n# over all {fit.count} finished trials, which the stopper chose, "
        f"{100 * fit.rmse:.2f} points, median {100 * fit.median_error:.2f}, rank correlation "
        f"{fit.rank_correlation:.2f})"
    )


def _run(folder: RunFolder, oracle: Oracle, proposal: Proposal, seed: int, out: Path, say: Any) -> dict[str, Any]:
    """Run the proposal as a trial of the study would run, rung by rung, and save the model."""
    from autoprune.recipe import Recipe
    from autoprune.report.single import save_outcome
    from autoprune.study.replay import is_replayed

    if is_replayed(folder):
        raise BadInput(f"{folder.path} holds a replayed study, which has no base model to run the recipe on")
    common.check_new(out)
    from autoprune.study.worker import load_bench, run_rungs

    bench, config = load_bench(folder), folder.config()
    recipe = Recipe.parse(dict(proposal.recipe), "proposed recipe")
    told: dict[str, Any] = {}

    def after(rung: int, accuracy: float, counts: Mapping[str, int]) -> None:
        say(f"rung {rung}: validation accuracy {100 * accuracy:.2f} %")
        if rung == 0 and config.rungs.top > 0:
            predicted, error = oracle.after_rung_zero(recipe.plain(), accuracy, counts)
            say(f"now predicted: {100 * predicted:.2f} ± {100 * error:.2f} %")
            told["predicted_after_rung_0"] = {"accuracy": predicted, "error": error}

    outcome = run_rungs(recipe, bench, config.rungs, seed, after)
    save_outcome(config, bench, outcome, seed, out, dict(read_front(str(folder.path)).base))
    say(f"Saved to {out}: {100 * outcome.metrics['flops_fraction']:.1f} % of the FLOPs")
    return told | {"measured": outcome.metrics, "folder": str(out)}
