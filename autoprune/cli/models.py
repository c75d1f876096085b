"""Commands about one model: evaluate, export, compress."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli import common
from autoprune.cli.outcomes import dynamic_rows, plain_outcome, print_outcome, size, sparse_rows
from autoprune.errors import BadInput

if TYPE_CHECKING:
    import torch

    from autoprune.recipe import Recipe

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an artefact.", show_default=False)]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="data.KEY=VALUE", help="Change the recorded data, e.g. data.root=/data."),
]


class SplitName(StrEnum):
    """Splits that a model is evaluated on."""

    validation = "validation"
    test = "test"
    both = "both"


class FormatName(StrEnum):
    """Formats of an export."""

    onnx = "onnx"
    pt2 = "pt2"


def evaluate(
    folder: FolderArgument,
    split: Annotated[SplitName, typer.Option(help="Which split to evaluate on.")] = SplitName.both,
    samples: Annotated[int | None, typer.Option(min=1, help="At most this many samples of each split.")] = None,
    settings: DataOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    latency: Annotated[bool, typer.Option("--latency", help="Also time one forward pass of one sample.")] = False,
    certify: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Also certify 200 samples: all inputs within this, in pixel values of 0 to 1.",
            show_default=False,
        ),
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Measure a saved model: accuracy on its own data, FLOPs, parameters."""
    from autoprune.report.evaluation import SPLITS, evaluate_artefact
    from autoprune.report.tables import human, percent, print_mapping

    found = evaluate_artefact(
        folder,
        SPLITS if split is SplitName.both else (split.value,),
        samples=samples,
        overrides=data_overrides(settings),
        device=device,
        latency=latency,
        certify_at=certify,
    )
    if as_json:
        common.print_json({"folder": str(folder)} | found)
        return
    recorded = found["recorded"].get("float_accuracy", found["recorded"].get("accuracy"))
    rows = [
        [f"{found['metric']} ({name}, {found[name]['count']} samples)", percent(found[name]["accuracy"])]
        for name in SPLITS
        if found.get(name)
    ]
    if recorded is not None:
        rows.append([f"{found['metric']} recorded by the study (validation)", percent(recorded)])
    rows += [["FLOPs", human(found["flops"])], ["parameters", human(found["params"])]]
    rows += sparse_rows(found["sparsity"], found["sparse_flops"]) + dynamic_rows(found)
    if latency:
        rows.append(["latency", f"{found['latency_ms']:.3f} ms"])
    if certify is not None:
        proven = found["certified"]
        where = f"{proven['split']}, {proven['count']} samples, epsilon {certify:g}"
        rows += [[f"{told} ({where})", percent(proven[told])] for told in ("clean", "attacked", "certified")]
    out = common.console()
    print_mapping(out, str(folder), rows, ("", "value"))
    if found["same_data"] is False:
        typer.echo("Note: the data is not what the model was made with; its fingerprint differs.", err=True)


def export(
    folder: FolderArgument,
    format: Annotated[FormatName, typer.Option(help="onnx or pt2 (torch.export).")] = FormatName.onnx,
    input_shape: Annotated[
        str | None,
        typer.Option(help="Shape of one sample, e.g. 3x32x32, in place of a sample of the recorded data."),
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(
            help="Write model.int8.onnx by this method; see 'autoprune methods quantisation'. Needs the data.",
            show_default=False,
        ),
    ] = None,
    settings: DataOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Export a saved model and check that the export agrees with it."""
    from autoprune.export import export as write_export
    from autoprune.report.tables import print_mapping

    if quantise is not None:
        export_quantised(folder, quantise, format, input_shape, settings, as_json)
        return
    inputs = example_inputs(folder, input_shape, settings)
    made = write_export(folder, format.value, inputs)
    if as_json:
        common.print_json({name: getattr(made, name) for name in made.__dataclass_fields__})
        return
    rows = [
        ["file", str(made.path)],
        ["file size", size(made.file_bytes)],
        ["weights", size(made.weight_bytes)],
        [
            "weights of the base model",
            "-" if made.base_weight_bytes is None else size(made.base_weight_bytes),
        ],
        ["largest relative difference", f"{made.largest_difference:.1e} (allowed {made.tolerance:g})"],
        ["checked at batch sizes", ", ".join(map(str, made.batch_sizes))],
    ]
    print_mapping(common.console(), f"Exported as {made.format}", rows, ("", "value"))


def export_quantised(
    folder: Path, method: str, format: FormatName, shape: str | None, settings: list[str] | None, as_json: bool
) -> None:
    """Write an artefact's quantised file. Raises BadInput for options that do not go with it."""
    from autoprune.deployment.quantised import method_of
    from autoprune.export import export_quantised as write_quantised
    from autoprune.report.evaluation import artefact_setting
    from autoprune.report.tables import percent, points, print_mapping

    if format is not FormatName.onnx:
        raise BadInput(f"--quantise writes ONNX files only, got --format {format.value}")
    if shape is not None:
        raise BadInput("--quantise calibrates and measures on the recorded data; leave out --input-shape")
    data, task = artefact_setting(folder, data_overrides(settings))
    made = write_quantised(folder, method_of(method), data, task)
    if as_json:
        common.print_json({name: getattr(made, name) for name in made.__dataclass_fields__})
        return
    rows = [
        ["file", str(made.path)],
        ["file size", f"{size(made.file_bytes)} (float32: {size(made.float_file_bytes)})"],
        [f"accuracy ({made.split}, {made.count} samples)", percent(made.accuracy)],
        ["of the float32 model", f"{percent(made.float_accuracy)} ({points(made.accuracy - made.float_accuracy)})"],
        ["calibrated on", f"{made.calibration_samples} training samples"],
    ]
    print_mapping(common.console(), f"Quantised by {method}", rows, ("", "value"))


def compress(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="YAML file, or the name of a shipped study.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the compressed model.", show_default=False)],
    preset: Annotated[str | None, typer.Option(help="A published method; see 'autoprune methods presets'.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file.")] = None,
    target_flops: Annotated[
        float | None, typer.Option(help="Share of the FLOPs, in place of the recipe's target.")
    ] = None,
    target_latency: Annotated[
        float | None, typer.Option(help="Share of the time of one sample, in place of the recipe's target.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of single weights that become zero, in place of the recipe's.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0, help="Epochs of training after the cut.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trial.")] = 0,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Compress a study's model by one recipe, without a search."""
    from autoprune.report.single import compress_study

    chosen = read_recipe(preset, recipe, target_flops, sparsity, target_latency)
    common.check_new(out)
    overrides = common.overrides_of(settings, {})
    say = lambda text: typer.echo(text, err=True)  # noqa: E731
    outcome = compress_study(study, chosen, seed, out, overrides, say, epochs=epochs)
    if as_json:
        common.print_json(plain_outcome(outcome, out))
        return
    print_outcome(outcome, out)


def data_overrides(settings: list[str] | None) -> dict[str, Any]:
    """Return the fields of the data spec that `--set data.KEY=VALUE` changes. Raises BadInput for another key."""
    found = common.overrides_of(settings, {})
    for key in found:
        if not key.startswith("data.") or key.count(".") != 1:
            raise BadInput(f"--set {key}: a saved model takes changes of its data only, like data.root=/data")
    return {key.removeprefix("data."): value for key, value in found.items()}


def example_inputs(folder: Path, shape: str | None, settings: list[str] | None) -> Any:
    """Return inputs of two samples: of the recorded data, or of a shape. Raises BadInput."""
    from autoprune import artefact
    from autoprune.report.evaluation import artefact_data

    manifest = artefact.read_manifest(folder)
    if shape is not None:
        return _random_inputs(shape)
    if manifest.data is None or manifest.data.spec is None:
        raise BadInput(f"{folder} does not record its data; give the shape of one sample: --input-shape 3x32x32")
    return artefact_data(manifest, data_overrides(settings), folder).example_inputs


def _random_inputs(shape: str) -> torch.Tensor:
    import torch

    parts = shape.lower().replace(",", "x").split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise BadInput(f"--input-shape is the shape of one sample like 3x32x32, got {shape!r}")
    return torch.randn(2, *map(int, parts), generator=torch.Generator().manual_seed(0))


def read_recipe(
    preset: str | None,
    path: Path | None,
    target: float | None,
    sparsity: float | None = None,
    latency: float | None = None,
) -> Recipe:
    """Return the recipe that the flags ask for. Raises BadInput unless exactly one source is given."""
    from autoprune import presets
    from autoprune.recipe import Recipe
    from autoprune.report.selection import check_fraction

    if (preset is None) == (path is None):
        got = "none" if preset is None else "both"
        raise BadInput(f"compress takes exactly one of --preset and --recipe, got {got}")
    if preset is not None:
        chosen = presets.load(preset)
    else:
        assert path is not None
        if not path.is_file():
            raise BadInput(f"recipe file {path} does not exist")
        chosen = Recipe.from_yaml(path.read_text(encoding="utf-8"), str(path))
    if target is not None and latency is not None:
        raise BadInput("compress takes one of --target-flops and --target-latency; a recipe file can have both")
    if target is not None:
        check_fraction("--target-flops", target)
        chosen = chosen.with_target(flops_fraction=target)
    if latency is not None:
        check_fraction("--target-latency", latency)
        chosen = chosen.with_target(flops_fraction=None, latency_fraction=latency)
    chosen.check_target()
    return chosen if sparsity is None else chosen.with_sparsity(sparsity)
