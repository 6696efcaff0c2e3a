"""Kinds of windows, as users write them: `tumbling("1h")`, `hopping("10m", every="1m")`, `session("30m")`. Data, and pure functions.

Windows are `[start, end)` in whole milliseconds, aligned to 1970 (UTC) plus `offset`.
"""

from __future__ import annotations

from math import gcd

import msgspec

from mycelia.durations import Duration, duration_text, seconds_of
from mycelia.errors import ConfigError

__all__ = [
    "CountWindows",
    "HoppingWindows",
    "SessionWindows",
    "SlidingWindows",
    "WindowKind",
    "counting",
    "hopping",
    "milliseconds_of",
    "session",
    "sliding",
    "tumbling",
]


_MOST_AT_ONCE = 10_000
"""Windows of a record. What they cost a batch is seconds by then."""


def milliseconds_of(value: Duration, what: str, at_least: int = 0) -> int:
    """A duration in whole milliseconds.

    Raises:
        ConfigError: it is no duration, no whole number of milliseconds, or shorter than `at_least`.
    """
    exact = seconds_of(value, what) * 1000
    whole = round(exact)
    if abs(exact - whole) > 1e-6 * max(1.0, exact):
        raise ConfigError(f"{what}: {value!r} is no whole number of milliseconds.")
    if whole < at_least:
        raise ConfigError(f"{what}: {value!r} is too short; expected {at_least} ms at least.")
    return whole


def _text(milliseconds: int) -> str:
    return duration_text(milliseconds / 1000)


class HoppingWindows(msgspec.Struct, frozen=True):
    """Windows of `size_ms`, one beginning every `every_ms`. Tumbling ones are those whose size is their step."""

    size_ms: int
    every_ms: int
    offset_ms: int = 0

    def __str__(self) -> str:
        after = f", offset={_text(self.offset_ms)}" if self.offset_ms else ""
        if self.size_ms == self.every_ms:
            return f"tumbling({_text(self.size_ms)}{after})"
        return f"hopping({_text(self.size_ms)}, every={_text(self.every_ms)}{after})"

    def starts(self, time_ms: int) -> list[int]:
        """When the windows that hold `time_ms` begin, the earliest first. None, if it lies between two of them."""
        latest = time_ms - (time_ms - self.offset_ms) % self.every_ms
        return list(range(latest, time_ms - self.size_ms, -self.every_ms))[::-1]

    def slice_ms(self) -> int:
        """The length of the slices that each lie in a window as a whole, or not at all; they are aligned as the windows are."""
        return gcd(self.size_ms, self.every_ms)


class SlidingWindows(msgspec.Struct, frozen=True):
    """For every event time of a key, the window of `size_ms` that ends with it: `(time - size, time]`."""

    size_ms: int

    def __str__(self) -> str:
        return f"sliding({_text(self.size_ms)})"


class SessionWindows(msgspec.Struct, frozen=True):
    """Records of a key that follow each other in less than `gap_ms`; the window ends a gap after the last."""

    gap_ms: int

    def __str__(self) -> str:
        return f"session({_text(self.gap_ms)})"


class CountWindows(msgspec.Struct, frozen=True):
    """Every `size` records of a key, in order of arrival."""

    size: int

    def __str__(self) -> str:
        return f"counting({self.size})"


WindowKind = HoppingWindows | SlidingWindows | SessionWindows | CountWindows


def tumbling(size: Duration, *, offset: Duration = 0) -> HoppingWindows:
    """Windows side by side: each record is in one of them.

    Args:
        size: "1h" for those from full hour to full hour, UTC.
        offset: how long after that they begin: `tumbling("1d", offset="5h")` are days from 5:00 UTC.
    """
    size_ms = milliseconds_of(size, "tumbling()", 1)
    return HoppingWindows(size_ms, size_ms, _offset(offset, size_ms, "tumbling(offset=)"))


def hopping(size: Duration, *, every: Duration, offset: Duration = 0) -> HoppingWindows:
    """Windows of `size` that begin every `every`: each record is in several of them, or, if `every` is longer, in one or none."""
    every_ms = milliseconds_of(every, "hopping(every=)", 1)
    size_ms = milliseconds_of(size, "hopping()", 1)
    if size_ms > every_ms * _MOST_AT_ONCE:
        raise ConfigError(
            f"hopping({_text(size_ms)}, every={_text(every_ms)}): each record would be in {size_ms // every_ms:,} windows, and {_MOST_AT_ONCE:,} "
            "are the most. Let them begin less often, or take sliding()."
        )
    return HoppingWindows(
        size_ms,
        every_ms,
        _offset(offset, every_ms, "hopping(offset=)"),
    )


def _offset(offset: Duration, step_ms: int, what: str) -> int:
    offset_ms = milliseconds_of(offset, what)
    if offset_ms >= step_ms:
        raise ConfigError(f"{what}: {offset!r} is not shorter than the step, {_text(step_ms)}.")
    return offset_ms


def sliding(size: Duration) -> SlidingWindows:
    """For each moment at which a key has a record, what it had in the `size` up to it: `(time - size, time]`."""
    return SlidingWindows(milliseconds_of(size, "sliding()", 1))


def session(gap: Duration) -> SessionWindows:
    """Spells of activity of a key, which end when it was silent for `gap`. A record between two spells makes one of them."""
    return SessionWindows(milliseconds_of(gap, "session()", 1))


def counting(size: int) -> CountWindows:
    """Every `size` records of a key, in the order in which they arrived."""
    if type(size) is not int or size < 1:
        raise ConfigError(f"counting({size!r:.60}): expected a whole number of records, from 1.")
    return CountWindows(size)
