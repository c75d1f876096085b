"""From a data spec to the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoprune.data.cache import Progress
from autoprune.data.digits import build_digits
from autoprune.data.image_folder import build_image_folder
from autoprune.data.split import Data
from autoprune.data.torchvision_sets import NAMES, build_torchvision
from autoprune.data.user import build_user_data, data_of
from autoprune.errors import BadData
from autoprune.specs import DataSpec, as_spec


def known_data() -> tuple[str, ...]:
    """Return the names of all data sets that need no function of the user."""
    return ("digits", "image_folder", *NAMES)


def build_data(spec: DataSpec | Mapping[str, Any], progress: Progress | None = None) -> Data:
    """Build the data of a spec. progress(done, count) is called while images are decoded into the cache.

    Raises BadInput (UnknownName, BadData) when the spec is wrong or the data cannot be read.
    """
    spec = as_spec(DataSpec, spec, "data")
    if spec.kind == "digits":
        return build_digits(spec)
    if spec.kind == "image_folder":
        return build_image_folder(spec, progress)
    if spec.kind == "function":
        return build_user_data(spec)
    return build_torchvision(spec, progress)


def as_data(data: Data | Mapping[str, Any]) -> Data:
    """Return data as such, from a mapping of splits (see `data.user`), or from a mapping that is a spec.

    Raises BadInput (UnknownName, BadData).
    """
    if isinstance(data, Data):
        return data
    if not isinstance(data, Mapping):
        raise BadData(f"data is a {type(data).__name__}; give a Data, or a mapping with 'train', or a data spec.")
    return data_of(data, DataSpec(name="given")) if "train" in data else build_data(data)
