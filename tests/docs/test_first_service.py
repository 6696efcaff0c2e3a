"""docs/first-service.md, played from beginning to end on a real broker: everything printed is what it says."""

from __future__ import annotations

from pathlib import Path

from tests.docs.documents import ROOT, blocks_of
from tests.docs.terminal import Terminal


def test_first_service_goes_as_it_says(tmp_path: Path, rabbit_uri: str) -> None:
    blocks = blocks_of(ROOT / "docs" / "first-service.md")
    files = [block for block in blocks if block.name]
    assert [block.name for block in files] == [
        *("hello.py", "door.py", "ask.py", "test_hello.py", "pytest.ini")
    ]

    with Terminal(tmp_path, rabbit_uri) as terminal:
        for block in blocks:
            terminal.play(block)
