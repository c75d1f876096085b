"""A compressed model in a folder: what a trial continues from, and what a user picks.

    model.safetensors   the weights, every shared tensor once; masks over single weights, eight in a byte
    autoprune.json      how to build the base model, kept indices by tensor, layers that were exchanged, metrics
    recipe.yaml         the recipe

`load` rebuilds the model in a fresh process. Nothing is ever unpickled; the base model's own weights are not
needed. An artefact whose model is `package.module:function` imports and calls that function: load only those
you trust.

A folder is replaced without a moment at which it is broken: new weights wait beside the old ones until
autoprune.json, which names their hash, has taken its place.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import autoprune
from autoprune.compressed import Compressed, Factor, Implant, rebuild
from autoprune.errors import AutopruneError, BadInput, WrongArtefact
from autoprune.files import replacing, write_text
from autoprune.graph import Selection
from autoprune.masks import Masks
from autoprune.models import build_model
from autoprune.recipe import Recipe, read_yaml
from autoprune.specs import DataSpec, ModelSpec, TaskSpec

FORMAT_VERSION = 1
WEIGHTS, MANIFEST, RECIPE = "model.safetensors", "autoprune.json", "recipe.yaml"
_NEW_WEIGHTS = "model.safetensors.new"
_SHOWN = 5
_MASK = "autoprune.mask."
"""In front of a weight's name, the name of its mask."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FactorRecord(_Plain):
    """One factorised layer: its module path, the low-rank method as plain data, the rank."""

    layer: str
    method: dict[str, Any]
    rank: int = Field(ge=1)


class ImplantRecord(_Plain):
    """One layer with rows in a cheaper form: its module path, the replacement as plain data, the rows."""

    layer: str
    method: dict[str, Any]
    rows: tuple[int, ...]


class DataRecord(_Plain):
    """The data a model was made with. `spec` is None when the data was given as an object."""

    name: str
    fingerprint: str
    num_classes: int | None = None
    spec: DataSpec | None = None

    @field_serializer("spec")
    def _as_given(self, spec: DataSpec | None) -> dict[str, Any] | None:
        # which fields may be written depends on the kind of data, so that defaults stay unwritten
        return None if spec is None else spec.model_dump(mode="json", exclude_unset=True)


def _recipe_as_data(value: Any) -> Any:
    return value.plain() if isinstance(value, Recipe) else value


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "autoprune": autoprune.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


class Manifest(_Plain):
    """What an artefact says about itself.

    model: how to build the base model; None when the user gave an object, of the class `model_class`.
    recipe: as plain data, so that a model made by a method that is not installed here still loads.
    metrics: accuracies in 0..1, costs, and the base model's under names that begin with `base_`.
    masked: of every masked weight how many entries stay.
    selection, factors, implants, masked, shared, weights_sha256: `save` fills them in.
    """

    format_version: int = FORMAT_VERSION
    model: ModelSpec | None = None
    model_class: str | None = None
    recipe: Annotated[dict[str, Any], BeforeValidator(_recipe_as_data)] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    data: DataRecord | None = None
    task: TaskSpec = TaskSpec()
    study: str | None = None
    trial: int | None = None
    rung: int | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=versions)
    created: str | None = None
    selection: dict[str, Any] = Field(default_factory=dict)
    factors: tuple[FactorRecord, ...] = ()
    implants: tuple[ImplantRecord, ...] = ()
    masked: dict[str, int] = Field(default_factory=dict)
    shared: dict[str, str] = Field(default_factory=dict)
    weights_sha256: str = ""


def save(folder: str | Path, compressed: Compressed, manifest: Manifest) -> Manifest:
    """Write an artefact and return its complete manifest; other files in the folder stay.

    A kill at any moment leaves either the artefact that was there before or the new one.
    Raises BadInput for a model whose state holds more than tensors.
    """
    place = Path(folder)
    tensors, shared = _distinct(compressed.model)
    tensors |= {f"{_MASK}{name}": _packed(mask) for name, mask in compressed.masks.items()}
    write_text(place / RECIPE, yaml.safe_dump(manifest.recipe, sort_keys=False))
    with replacing(place / _NEW_WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    complete = manifest.model_copy(
        update={
            "selection": compressed.selection.to_data(),
            "factors": tuple(
                FactorRecord(layer=f.layer, method=dict(f.method), rank=f.rank) for f in compressed.factors
            ),
            "implants": tuple(
                ImplantRecord(layer=i.layer, method=dict(i.method), rows=i.rows) for i in compressed.implants
            ),
            "masked": {name: int(mask.sum()) for name, mask in compressed.masks.items()},
            "shared": shared,
            "weights_sha256": _sha256(place / _NEW_WEIGHTS),
            "model_class": _class_path(compressed.model),
        }
    )
    write_text(place / MANIFEST, _as_json(complete))
    (place / _NEW_WEIGHTS).replace(place / WEIGHTS)
    return complete


def read_manifest(folder: str | Path) -> Manifest:
    """Read what an artefact says about itself. Raises WrongArtefact."""
    place = Path(folder)
    path = place / MANIFEST
    if not path.is_file():
        missing = "is no folder" if not place.is_dir() else f"holds no {MANIFEST}"
        raise WrongArtefact(f"{place} is not an artefact: it {missing}. 'autoprune pick' makes artefacts.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WrongArtefact(f"{path} is damaged, it is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise WrongArtefact(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    if content.get("format_version") != FORMAT_VERSION:
        raise WrongArtefact(
            f"{path} has format_version {content.get('format_version')!r}; "
            f"autoprune {autoprune.__version__} reads {FORMAT_VERSION}. "
            f"It was made by autoprune {_made_by(content)}."
        )
    try:
        return Manifest.model_validate(content | {"recipe": _read_recipe(place)})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WrongArtefact(f"{path}: {where}: {first['msg']}") from error


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the compressed model of an artefact, on the CPU, in eval mode.

    model: the uncut base model, needed only when the artefact was made from a model object; it is not changed
    and its weights do not matter. Raises WrongArtefact when files are missing or damaged, or when the base
    model is another one.
    """
    return load_compressed(folder, model).model


def load_compressed(folder: str | Path, model: nn.Module | None = None) -> Compressed:
    """Return an artefact's model together with what was kept of the base model. Raises as `load` does."""
    manifest = read_manifest(folder)
    stored = _read_weights(Path(folder), manifest)
    tensors = {name: value for name, value in stored.items() if not name.startswith(_MASK)}
    uncut = _base_model(manifest) if model is None else copy.deepcopy(model)
    selection = Selection.from_data(manifest.selection)
    factors = tuple(Factor(layer=f.layer, method=f.method, rank=f.rank) for f in manifest.factors)
    implants = tuple(Implant(layer=i.layer, method=i.method, rows=i.rows) for i in manifest.implants)
    small = _rebuilt(uncut, selection, factors, implants, Path(folder))
    _fill(small, tensors | {alias: tensors[name] for alias, name in manifest.shared.items()}, Path(folder))
    found = _masks(small, stored, manifest, Path(folder))
    return Compressed(model=small.eval(), selection=selection, factors=factors, implants=implants, masks=found)


def base_model(folder: str | Path) -> nn.Module:
    """Return the uncut model of an artefact with initial weights: what its cost is compared with.

    Raises WrongArtefact when the artefact was made from a model object.
    """
    return _base_model(read_manifest(folder))


def check_reference(name: str, what: str) -> None:
    """Refuse a `package.module:function` of an artefact that lies in Python's own library.

    Such a name builds neither model nor data, but could run commands. Raises WrongArtefact.
    """
    module = name.partition(":")[0].partition(".")[0]
    if ":" in name and module in sys.stdlib_module_names | {"torch", "builtins"}:
        raise WrongArtefact(f"the artefact's {what} is {name!r}, which makes no {what}; it is not called")


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every distinct tensor of the model's state by its first name, and {other name: first name}."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"the model's state {name!r} is a {type(value).__name__}; an artefact holds tensors only. "
                "Remove get_extra_state, or make it a buffer."
            )
        if id(value) in first:
            shared[name] = first[id(value)]
        else:
            first[id(value)] = name
            # a clone: views of one storage would be refused
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, shared


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _masks(model: nn.Module, stored: Mapping[str, Tensor], manifest: Manifest, folder: Path) -> Masks:
    """Return the masks that were saved. Raises WrongArtefact where they do not agree with the weights."""
    found: Masks = {}
    weights = dict(model.named_parameters())
    for name, kept in manifest.masked.items():
        packed, weight = stored.get(f"{_MASK}{name}"), weights.get(name)
        if packed is None or weight is None or len(packed) != -(-weight.numel() // 8):
            raise WrongArtefact(f"{folder}: {WEIGHTS} has no mask for {name} that fits the model")
        bits = np.unpackbits(packed.numpy(), count=weight.numel())
        mask = torch.from_numpy(bits.astype(bool)).view(weight.shape)
        if int(mask.sum()) != kept or bool(weight.detach()[~mask].any()):
            raise WrongArtefact(f"{folder}: {name} is not zero where its mask says so, or keeps other than {kept}")
        found[name] = mask
    return found


def _as_json(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(mode="json", exclude={"recipe"}), indent=1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _class_path(model: nn.Module) -> str:
    return f"{type(model).__module__}:{type(model).__qualname__}"


def _made_by(content: Mapping[str, Any]) -> str:
    found = content.get("versions")
    return str(found.get("autoprune", "?")) if isinstance(found, dict) else "?"


def _read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE
    if not path.is_file():
        raise WrongArtefact(f"{folder} is not a complete artefact: {RECIPE} is missing")
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (AutopruneError, UnicodeDecodeError) as error:
        raise WrongArtefact(f"{path} is damaged: {error}") from error


def _read_weights(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    candidates = [p for p in (folder / WEIGHTS, folder / _NEW_WEIGHTS) if p.is_file()]
    if not candidates:
        raise WrongArtefact(f"{folder} is not a complete artefact: {WEIGHTS} is missing")
    path = next((p for p in candidates if _sha256(p) == manifest.weights_sha256), None)
    if path is None:
        raise WrongArtefact(f"{candidates[0]} is damaged: its content is not what {MANIFEST} was written for")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WrongArtefact(f"{path} is not a safetensors file: {error}") from error


def _base_model(manifest: Manifest) -> nn.Module:
    if manifest.model is None:
        raise WrongArtefact(
            f"the artefact was made from a model object of class {manifest.model_class}, "
            "which it cannot build; give an uncut instance: autoprune.load(folder, model)"
        )
    check_reference(manifest.model.name, "model")
    classes = None if manifest.data is None else manifest.data.num_classes
    return build_model(manifest.model.model_copy(update={"weights": None}), classes)


def _rebuilt(
    model: nn.Module,
    selection: Selection,
    factors: tuple[Factor, ...],
    implants: tuple[Implant, ...],
    folder: Path,
) -> nn.Module:
    try:
        return rebuild(model, selection, factors, implants)
    except WrongArtefact as error:
        raise WrongArtefact(f"{folder} does not fit the base model {type(model).__name__}: {error}") from error
    except (AutopruneError, AttributeError, ValueError) as error:
        raise WrongArtefact(
            f"{folder}: a factorised or implanted layer does not fit the base model: {error}"
        ) from error


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Put the tensors into the model in place, so that shared ones stay shared and dtypes are the file's."""
    wanted = model.state_dict(keep_vars=True)
    problems = [f"{name} is missing in {WEIGHTS}" for name in wanted if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} in {WEIGHTS} but {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        rest = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WrongArtefact(f"{folder} does not fit the base model: {'; '.join(problems[:_SHOWN])}{rest}")
    for name, value in wanted.items():
        value.data = tensors[name].to(value.device)
