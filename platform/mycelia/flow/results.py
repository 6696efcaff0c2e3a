"""What windows give: results, and the records that came too late for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

import msgspec

__all__ = ["LateRecord", "OpenWindow", "Timing", "WindowResult", "WindowSpan", "moment_of"]

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")

Timing = Literal["early", "on time", "late"]
"""When a result was given: before its window closed, as it did, or after late records."""


def moment_of(time_ms: int) -> datetime:
    """Milliseconds since 1970 as a moment, in UTC."""
    seconds, milliseconds = divmod(time_ms, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=milliseconds * 1000)


class WindowSpan(msgspec.Struct, frozen=True, order=True):
    """A window: from `start_ms` up to and without `end_ms`, milliseconds since 1970."""

    start_ms: int
    end_ms: int

    @property
    def start(self) -> datetime:
        return moment_of(self.start_ms)

    @property
    def end(self) -> datetime:
        return moment_of(self.end_ms)


class WindowResult(msgspec.Struct, Generic[K, R], frozen=True):
    """What a window of one key came to, so far.

    `index` counts the results of one key and window from 0. Its event time in the flow is `end_ms - 1`, the window's last moment.

    Attributes:
        value: of `aggregate(count(), mean(…))` a tuple, of one aggregation its result.
        timing: "early", "on time" or "late".
        is_final: no further result of this window can follow.
        is_retraction: takes back a result that was given before, whose value it bears (`mode="retract"`).
    """

    key: K
    start_ms: int
    end_ms: int
    value: R
    timing: Timing = "on time"
    index: int = 0
    is_final: bool = True
    is_retraction: bool = False

    @property
    def window(self) -> WindowSpan:
        return WindowSpan(self.start_ms, self.end_ms)

    @property
    def start(self) -> datetime:
        return moment_of(self.start_ms)

    @property
    def end(self) -> datetime:
        return moment_of(self.end_ms)


class OpenWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window of a key that takes records still, and what it has come to so far: what `as_state()` tells."""

    start_ms: int
    end_ms: int
    value: Any
    """The result as of now. With `mode="discard"`, of the records since the last result; None where there are none."""
    is_closed: bool = False
    """Its result "on time" has been given; what comes within its lateness changes it still."""


class LateRecord(msgspec.Struct, Generic[K, T], frozen=True):
    """A record that came after a window of its was closed for good.

    Attributes:
        value: the record.
        time_ms: its event time.
        watermark_ms: how far event time had come.
        missed: the windows that it is missing from. It may be in others, which were open still.
    """

    key: K
    value: T
    time_ms: int
    watermark_ms: int
    missed: tuple[WindowSpan, ...] = ()
