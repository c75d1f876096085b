"""How many CPU threads torch uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Let torch use this many CPU threads for a while.

    Small networks gain nothing from more, and threads that wait for each other on busy cores can cost many times the
    work itself. With a stated number, results do not depend on the machine's cores either.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
