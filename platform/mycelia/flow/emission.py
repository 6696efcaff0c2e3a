"""When a window gives a result, and what it says of those that it gave before. Data."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from mycelia.durations import Duration, duration_text
from mycelia.errors import ConfigError
from mycelia.flow.windows import milliseconds_of

__all__ = ["AfterRecords", "Emission", "EveryPeriod", "Mode", "after", "emission_of", "every"]

Mode = Literal["accumulate", "discard", "retract"]
"""What a further result of a window holds: all its records; those since the last result; all, and the last is taken back first."""


class AfterRecords(msgspec.Struct, frozen=True):
    """When at least `count` records have come since the last result; asked once a batch."""

    count: int

    def __str__(self) -> str:
        return "update" if self.count == 1 else f"after {self.count}"


class EveryPeriod(msgspec.Struct, frozen=True):
    """Each time the clock passes a multiple of `period_ms`, if records have come since the last result."""

    period_ms: int
    clock: Literal["event", "processing"] = "event"

    def __str__(self) -> str:
        of = " of processing time" if self.clock == "processing" else ""
        return f"every {duration_text(self.period_ms / 1000)}{of}"


def after(count: int) -> AfterRecords:
    """A result when `count` records have come since the last one."""
    if type(count) is not int or count < 1:
        raise ConfigError(f"after({count!r:.60}): expected a whole number of records, from 1.")
    return AfterRecords(count)


def every(period: Duration, *, clock: Literal["event", "processing"] = "event") -> EveryPeriod:
    """A result every `period`, if there is something new.

    Args:
        clock: "event": as event time comes by, which a replay repeats; "processing": by the clock on the wall.
    """
    if clock not in ("event", "processing"):
        raise ConfigError(f'every(clock={clock!r:.60}): expected "event" or "processing".')
    return EveryPeriod(milliseconds_of(period, "every()", 1), clock)


class Emission(msgspec.Struct, frozen=True):
    """When windows give results, and what these say. A window always gives one as it closes."""

    early: AfterRecords | EveryPeriod | None = None
    late: AfterRecords = AfterRecords(1)
    mode: Mode = "accumulate"

    def __str__(self) -> str:
        parts = [f"emit={self.early or 'close'}"]
        if self.late.count != 1:
            parts.append(f"late={self.late}")
        if self.mode != "accumulate":
            parts.append(f"mode={self.mode}")
        return ", ".join(parts)


UPDATE: Final = AfterRecords(1)


def emission_of(emit: object, late: object, mode: object, where: str) -> Emission:
    """What `window(emit=, late=, mode=)` say.

    Raises:
        ConfigError: one of them is something else.
    """
    early = None if emit == "close" else UPDATE if emit == "update" else emit
    if early is not None and not isinstance(early, AfterRecords | EveryPeriod):
        raise ConfigError(
            f'{where}: emit={emit!r:.60}: expected "close", "update", every("1m") or after(100).'
        )
    again = UPDATE if late == "update" else late
    if not isinstance(again, AfterRecords):
        raise ConfigError(f'{where}: late={late!r:.60}: expected "update" or after(100).')
    if mode not in get_args(Mode):
        raise ConfigError(
            f'{where}: mode={mode!r:.60}: expected "accumulate", "discard" or "retract".'
        )
    return Emission(early, again, mode)  # type: ignore[arg-type]  # it is one of them
