"""Traces as trees: each span once, below its parent, whatever the spans say of each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from services.trace_tree import BAR, Span, draw

MS = 1_000_000


def span(id: str, parent: str | None = None, start: int = 0, took: int = 1, **more: object) -> Span:
    return Span(
        id, parent, "t1", service="feed", name=id, start=start * MS, end=(start + took) * MS, **more
    )  # type: ignore[arg-type]


def test_children_stand_below_their_parents_in_the_order_of_their_beginnings() -> None:
    lines = draw(
        [
            span("late", "root", start=6, took=4, error="KeyError: 'JAC'", notes=["attempt 2"]),
            span("root", took=10),
            span("deep", "early", start=2),
            span("early", "root", start=1, took=3),
        ]
    )
    assert lines == [
        "trace t1: 4 spans of 1 services in 10.0 ms",
        "feed: root      ▕████████████████████████▏  10.0 ms",
        "├ feed: early   ▕  ████████              ▏   3.0 ms",
        "│ └ feed: deep  ▕    ████                ▏   1.0 ms",
        "└ feed: late    ▕              ██████████▏   4.0 ms  attempt 2, FAILED KeyError: 'JAC'",
    ]


def test_nothing_is_nothing() -> None:
    assert draw([]) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99)), max_size=10))
def test_every_span_is_shown_once(found: list[tuple[int, int, int]]) -> None:
    """Parents that are missing, that are the span itself, that go in circles."""
    spans = [
        span(f"<{number}>", f"<{parent}>", start=start, took=took)
        for number, (parent, start, took) in enumerate(found)
    ]
    text = draw(spans)
    assert len(text) == len(spans) + bool(spans)
    for each in spans:
        shown = [line for line in text[1:] if each.id in line]
        assert len(shown) == 1
        bar = shown[0].partition("▕")[2].partition("▏")[0]
        assert len(bar) == BAR
        assert "█" in bar
