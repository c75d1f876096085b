"""The contract of the room `quantisation`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoprune.rooms import Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batches = Iterable[Mapping[str, NDArray[np.generic]]]
    """Batches of inputs, each an array (N, ...) by the name of the file's input."""
else:
    Batches = Any


class Quantisation(Method):
    """Turns an ONNX file of float32 numbers into one of integers, after all training.

    The model in torch stays as it is; accuracy, size and speed of a quantised model are those of its file.
    """

    room: ClassVar[str] = "quantisation"
    bits: ClassVar[int]
    """Of every quantised weight."""
    activation_bits: ClassVar[int]
    """Of what one layer hands to the next."""

    @property
    def calibration_samples(self) -> int:
        """How many samples the method looks at; 0 for none."""
        return 0

    @abstractmethod
    def quantise(self, source: Path, target: Path, batches: Batches) -> None:
        """Write the quantised file. batches: of samples that were trained on, `calibration_samples` in all.

        Raises whatever the quantiser raises for a file that it cannot take.
        """
