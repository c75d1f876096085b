"""From a data spec to the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoprune.data.digits import build_digits
from autoprune.data.split import Data
from autoprune.errors import unknown_name
from autoprune.specs import DataSpec, as_spec


def build_data(spec: DataSpec | Mapping[str, Any]) -> Data:
    """Build the data of a spec. Raises BadInput (UnknownName, BadData) when it cannot be."""
    spec = as_spec(DataSpec, spec, "data")
    if spec.kind == "digits":
        return build_digits(spec)
    raise unknown_name("data set", spec.name, ["digits"])
