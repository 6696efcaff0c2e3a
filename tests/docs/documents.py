"""The project's documents, taken apart: code blocks, links, headings, names in backticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DOCUMENTS",
    "ROOT",
    "Block",
    "anchors_of",
    "blocks_of",
    "links_of",
    "prose_of",
    "table_rows",
]

ROOT = Path(__file__).parents[2]

DOCUMENTS = sorted(
    (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "contracts").rglob("*.md"),
        *(ROOT / "changes").glob("*.md"),
    )
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FILE_NAME = re.compile(r"# ([\w.-]+\.(?:py|ini|yaml))\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its first line in the document, from 1.
        name: of the file it shows, from a first line such as `# hello.py`; empty without one.
    """

    document: Path
    line: int
    language: str
    text: str
    name: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks_of(document: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a document, in order; of one language if given."""
    text = document.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        named = _FILE_NAME.match(match[2])
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(document, line, match[1], match[2], named[1] if named else ""))
    return [block for block in found if language in (None, block.language)]


def prose_of(document: Path) -> str:
    """The document without its fenced blocks."""
    return _FENCE.sub("", document.read_text("utf-8"))


def links_of(document: Path) -> list[str]:
    """The targets of the document's links, those to the web left out."""
    targets = _LINK.findall(prose_of(document))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors_of(document: Path) -> set[str]:
    """What `#…` may name in a document: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of each table row, rulers left out."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]
