"""What windows are to do, told record by record and as plainly as can be: the fast operators are compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mycelia.flow.results import WindowResult

Span = tuple[int, int]


@dataclass
class Held:
    records: list[Any] = field(default_factory=list)
    fresh: list[Any] = field(default_factory=list)
    index: int = 0
    is_closed: bool = False
    told: tuple[int, Any] | None = None


class SlowWindows:
    """Windows whose bounds do not depend on the other records.

    Args:
        spans: the windows that a time is in.
        early, late: records after which there is a result before and after the end; `early` None for none.
    """

    def __init__(
        self,
        spans: Callable[[int], list[Span]],
        lateness: int,
        early: int | None = None,
        late: int = 1,
        mode: str = "accumulate",
    ) -> None:
        self.spans = spans
        self.lateness = lateness
        self.early, self.late, self.mode = early, late, mode
        self.windows: dict[tuple[Any, Span], Held] = {}
        self.watermark = -(2**62)
        self.missed: list[tuple[Any, Any, tuple[Span, ...]]] = []
        self.results: list[WindowResult[Any, Any]] = []

    def batch(self, records: list[tuple[Any, int, Any]]) -> None:
        touched: dict[tuple[Any, Span], None] = {}
        for key, time, value in records:
            missed = []
            for span in self.spans(time):
                if span[1] + self.lateness <= self.watermark:
                    missed.append(span)
                else:
                    held = self.windows.setdefault(
                        (key, span), Held(is_closed=span[1] <= self.watermark)
                    )
                    held.records.append(value)
                    held.fresh.append(value)
                    touched[key, span] = None
            if missed:
                self.missed.append((key, value, tuple(missed)))
        for key, span in touched:
            held = self.windows[key, span]
            if span[1] <= self.watermark:
                if len(held.fresh) >= self.late:
                    self.tell(key, span, held, "late", False)
            elif self.early is not None and len(held.fresh) >= self.early:
                self.tell(key, span, held, "early", False)

    def advance(self, watermark: int) -> None:
        self.watermark = watermark
        for (key, span), held in list(self.windows.items()):
            if span[1] <= watermark and not held.is_closed:
                self.tell(key, span, held, "on time", not self.lateness)
        for (key, span), held in list(self.windows.items()):
            if span[1] + self.lateness <= watermark:
                if held.fresh:
                    self.tell(key, span, held, "late", True)
                del self.windows[key, span]

    def tell(self, key: Any, span: Span, held: Held, timing: Any, is_final: bool) -> None:
        value = list(held.fresh if self.mode == "discard" else held.records)
        if held.told is not None:
            self.results.append(
                WindowResult(key, *span, held.told[1], timing, held.told[0], False, True)
            )
        self.results.append(WindowResult(key, *span, value, timing, held.index, is_final))
        if self.mode == "retract":
            held.told = (held.index, value)
        held.index += 1
        held.fresh.clear()
        held.is_closed = held.is_closed or timing != "early"
