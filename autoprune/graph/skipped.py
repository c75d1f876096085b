"""What stands in a model where a residual block was taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from autoprune.errors import WrongArtefact
from autoprune.modules import replace_module


class Skipped(nn.Module):
    """The identity in place of a residual block: returns the argument that the block's shortcut carried.

    argument: a position, or the name of a keyword. The block's other arguments, such as masks, are left unread.
    """

    def __init__(self, argument: int | str = 0, block: str = "") -> None:
        super().__init__()
        self.argument = argument
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the shortcut of the block would have carried."""
        return args[self.argument] if isinstance(self.argument, int) else kwargs[self.argument]

    def extra_repr(self) -> str:
        """Say which class of block was here."""
        return self.block if self.argument == 0 else f"{self.block}, argument={self.argument!r}"


def stand_ins(model: nn.Module, arguments: Mapping[str, int | str]) -> dict[str, Skipped]:
    """Return by module path what takes the place of each block. Raises WrongArtefact for a path that is not there."""
    found = {}
    for path, argument in arguments.items():
        try:
            block = model.get_submodule(path)
        except AttributeError as error:
            raise WrongArtefact(
                f"the model has no module {path!r}, which is to be skipped; does this belong to another model?"
            ) from error
        found[path] = Skipped(argument, type(block).__name__)
        found[path].training = block.training
    return found


def take_out(model: nn.Module, arguments: Mapping[str, int | str]) -> None:
    """Skip blocks of a model in place. Raises WrongArtefact for a path that is not there."""
    for path, stand_in in stand_ins(model, arguments).items():
        replace_module(model, path, stand_in)
