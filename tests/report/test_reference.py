from __future__ import annotations

from pathlib import Path

from autoprune import rooms
from autoprune.report.reference import methods_markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"


def test_every_method_has_its_section() -> None:
    text = methods_markdown()
    for room in rooms.ROOMS:
        for name in rooms.names(room):
            assert f"### `{name}`\n" in text


def test_the_document_is_up_to_date() -> None:
    message = "run: python -m autoprune.report.reference docs/methods.md"
    assert DOCUMENT.read_text(encoding="utf-8") == methods_markdown(), message
