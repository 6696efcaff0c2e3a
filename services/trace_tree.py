"""A trace as a tree in the terminal. Pure: spans in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["Span", "draw"]

BAR = 24
"""Columns of the bar that shows when a span began and how long it took."""


@dataclass(frozen=True)
class Span:
    """What the tree shows of a span. Times in nanoseconds since the epoch."""

    id: str
    parent: str | None
    trace: str
    service: str
    name: str
    start: int
    end: int
    error: str | None = None
    notes: Sequence[str] = field(default=())
    """Said after the name: `attempt 2`."""


def draw(spans: Iterable[Span]) -> list[str]:
    """One trace as lines: each span below the one it belongs to, in the order of their beginnings.

    A span whose parent is not among them stands at the top. Every span is shown once, also where parents go in a circle.
    """
    spans = sorted(spans, key=lambda span: (span.start, span.id))
    if not spans:
        return []
    first, last = spans[0].start, max(span.end for span in spans)
    rows = list(_walk(spans))
    left = [f"{branch}{span.service}: {span.name}" for branch, span in rows]
    width = max(map(len, left))
    head = f"trace {spans[0].trace}: {len(spans)} spans of {len({s.service for s in spans})} services in {_took(last - first)}"
    lines = [head]
    for text, (_, span) in zip(left, rows, strict=True):
        said = [*span.notes, *([f"FAILED {span.error}"] if span.error else [])]
        line = f"{text:<{width}}  {_bar(span, first, last)} {_took(span.end - span.start):>8}  {', '.join(said)}"
        lines.append(line.rstrip())
    return lines


def _walk(spans: Sequence[Span]) -> Iterator[tuple[str, Span]]:
    """Each span with the lines that lead to it, parents before their children."""
    ids = {span.id for span in spans}
    below: dict[str | None, list[Span]] = {}
    for span in spans:
        at = span.parent if span.parent in ids else None
        below.setdefault(at, []).append(span)
    seen: set[str] = set()

    def branch(parent: str | None, lead: str) -> Iterator[tuple[str, Span]]:
        children = [span for span in below.get(parent, ()) if span.id not in seen]
        for span in children:
            seen.add(span.id)
            is_last = span is children[-1]
            if parent is None:
                yield "", span
                yield from branch(span.id, "")
            else:
                yield lead + ("└ " if is_last else "├ "), span
                yield from branch(span.id, lead + ("  " if is_last else "│ "))

    yield from branch(None, "")
    for span in spans:  # those that only a circle leads to
        if span.id not in seen:
            seen.add(span.id)
            yield "", span
            yield from branch(span.id, "")


def _bar(span: Span, first: int, last: int) -> str:
    """`▕  ██      ▏`: from when to when, within the whole."""
    whole = max(last - first, 1)
    begin = min(int((span.start - first) * BAR / whole), BAR - 1)
    end = max(begin + 1, min(-(-(span.end - first) * BAR // whole), BAR))
    return f"▕{' ' * begin}{'█' * (end - begin)}{' ' * (BAR - end)}▏"


def _took(nanoseconds: int) -> str:
    ms = nanoseconds / 1e6
    return f"{ms:,.1f} ms" if ms < 1000 else f"{ms / 1000:,.2f} s"
