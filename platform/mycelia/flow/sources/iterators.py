"""Any async iterator as a source, and ticks of the clock on the wall."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeVar

from mycelia.durations import Duration, duration_text, seconds_of
from mycelia.errors import ConfigError
from mycelia.flow.results import moment_of
from mycelia.flow.sources.pulled import PulledItem, PulledSource
from mycelia.logs.record_shape import Extractor, RecordShape

__all__ = ["iterator", "ticks"]

T = TypeVar("T")
P = TypeVar("P")


def iterator(
    function: Callable[[P | None], AsyncIterable[tuple[P, T]]],
    *,
    of: type[T] | None = None,
    name: str | None = None,
    key: Extractor | None = None,
    time: Extractor | None = None,
) -> PulledSource[T]:
    """Whatever an async iterator gives, as a source: `@flow(iterator(readings))`.

        async def readings(position: int | None) -> AsyncIterator[tuple[int, Reading]]:
            async for line in meter.lines(after=position or 0):
                yield line.number, Reading(line.value)

    The position of the last value that was committed is where it begins again: after a restart, after a crash, and when it raised. Values are
    counted once if it gives the same ones behind a position as before.

    Args:
        function: of the position to begin behind, None at first. It gives positions, plain data, with values. At its end the source is silent.
        of: what the values are, for type checkers and for `key`.
        name: what the flow's state knows it by; the function's name by default.
        key: where a value's key is: a field's name or a function.
        time: where its event time is; by default the time at which it came.
    """
    if not callable(function):
        raise ConfigError(f"iterator({function!r:.60}): expected a function of a position.")
    called = name or str(getattr(function, "__name__", type(function).__name__))

    async def begin(position: Any, only_new: bool) -> AsyncGenerator[PulledItem, None]:
        values: Any = function(position)
        async with aclosing(values) if hasattr(values, "aclose") else _Nothing():
            async for at, value in values:
                yield PulledItem(at, value)

    return PulledSource(called, RecordShape(f"source {called}", of, key, time), begin)


class _Nothing:
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


def ticks(interval: Duration, *, name: str | None = None) -> PulledSource[datetime]:
    """A moment each `interval` of the clock on the wall, as a source: `@flow(ticks("1s"))`. Its records are `datetime`s, in UTC.

    They are multiples of the interval since 1970, each once: those of a time in which nobody ran the flow come when somebody does, one
    behind the other. The first is the next one after the flow's first start.

    Args:
        name: what the flow's state knows it by; `ticks-1s` by default.
    """
    interval_ms = round(seconds_of(interval, "ticks()") * 1000)
    if interval_ms < 1:
        raise ConfigError(f"ticks({interval!r}): expected a time of 1 ms or more.")
    called = name or f"ticks-{duration_text(interval_ms / 1000)}"

    async def begin(position: Any, only_new: bool) -> AsyncGenerator[PulledItem, None]:
        at = _now_ms() // interval_ms * interval_ms if position is None else position
        while True:
            at += interval_ms
            await _until(at)
            yield PulledItem(at, moment_of(at), at)

    return PulledSource(
        called, RecordShape(f"source {called}", datetime, None, None), begin, interval_ms
    )


async def _until(at_ms: int) -> None:
    while True:
        left = at_ms - _now_ms()
        if left <= 0:
            return
        await asyncio.sleep(min(left / 1000, 1.0))  # the clock on the wall may be set meanwhile


def _now_ms() -> int:
    return int(time.time() * 1000)
