"""A source that is an async generator of values with positions: its reader, which keeps where it stands as a log's does.

A position is whatever the generator says of a value, and takes as the place to go on behind. The checkpoint has the last one that was
taken; after a crash the generator begins again from there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from mycelia.amqp import Delivery, Link, Properties
from mycelia.errors import ContractError, FlowError, UnserializableValueError, describe
from mycelia.flow.sources.single import SingleSource
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.flow.user_code import error_of, is_called_off
from mycelia.logs import FaultyRecord, LogEntry, LogPosition
from mycelia.logs.position import StartAt
from mycelia.logs.record_shape import RecordShape

__all__ = ["Begin", "PulledItem", "PulledReader", "PulledSource", "place_of"]

T = TypeVar("T")

_POSITION: Final = "position"
_ENTRY_RECORDS: Final = 500
_BUFFER: Final = 2000
"""Values that may have come and not been taken. The generator waits then."""


class PulledItem(NamedTuple):
    """A value as it comes.

    Attributes:
        position: where it is.
        time_ms: its time, milliseconds since 1970, if that is not in the value.
        fault: why it is no record; it is a dead letter then.
    """

    position: Any
    value: Any
    time_ms: int | None = None
    fault: str | None = None


Begin = Callable[[Any, bool], AsyncGenerator[PulledItem, None]]
"""Begins behind a position; with None at the beginning, or, if the second argument is true, with what comes from now on."""


def place_of(count: int, position: Any) -> LogPosition:
    """Where a source stands as a checkpoint keeps it: how many values were taken, and behind which."""
    return LogPosition(offset=count, seen={_POSITION: [encode_state(position)]})


class PulledSource(SingleSource[T]):
    """Made by `iterator()`, `ticks()` and `sql_changes()`: a source of one partition for `@flow(…)`. Nothing of it is at the broker."""

    def __init__(
        self, name: str, shape: RecordShape[T], begin: Begin, interval_ms: int | None = None
    ) -> None:
        super().__init__(name, shape)
        self.interval_ms = interval_ms
        self._begin = begin

    def reader(self, link: Link, partition: int, start: StartAt = "first") -> PulledReader:
        return PulledReader(self.name, self.shape, self._begin, start)


class PulledReader:
    """Reads such a source; see `SourceReader`."""

    def __init__(self, name: str, shape: RecordShape[Any], begin: Begin, start: StartAt) -> None:
        self._name = name
        self._shape = shape
        self._begin = begin
        self._only_new = start == "next"
        self._count = 0
        self._position: Any = None
        if isinstance(start, LogPosition):
            self._count = start.offset
            self._only_new = False
            kept = start.seen.get(_POSITION)
            if kept:
                self._position = decode_state(kept[0])
        self._buffer: deque[PulledItem] = deque()
        self._arrived = asyncio.Event()
        self._has_room = asyncio.Event()
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def position(self) -> LogPosition | None:
        if self._position is None and not self._count:
            return None
        return place_of(self._count, self._position)

    async def open(self) -> None:
        if self._task is None:
            name = f"mycelia:flow-source:{self._name}"
            self._task = asyncio.create_task(self._pull(), name=name)

    async def aclose(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=5.0)

    async def end(self) -> None:
        """It cannot be said."""

    def committed(self, position: LogPosition) -> None:
        """The position says it all."""

    async def _pull(self) -> None:
        values = self._begin(self._position, self._only_new)
        try:
            async for item in values:
                while len(self._buffer) >= _BUFFER:
                    self._has_room.clear()
                    await self._has_room.wait()
                self._buffer.append(item)
                self._arrived.set()
        except BaseException as exc:
            if is_called_off(exc):
                raise
            self._error = error_of(exc)
            self._arrived.set()
        finally:
            await values.aclose()

    async def take(self, timeout: float | None = None) -> LogEntry[Any] | None:
        if not self._buffer and self._error is None:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        if not self._buffer:
            if self._error is None:
                return None
            raise FlowError(
                f"source {self._name}: {describe(self._error)}. It begins again from the last commit."
            ) from self._error
        some = [self._buffer.popleft() for _ in range(min(len(self._buffer), _ENTRY_RECORDS))]
        self._has_room.set()
        offset = self._count
        self._count += len(some)
        self._position = some[-1].position
        return _entry_of(self._name, self._shape, some, offset)


def _entry_of(
    name: str, shape: RecordShape[Any], items: Sequence[PulledItem], offset: int
) -> LogEntry[Any]:
    """Values as an entry; those whose key or time cannot be had are its faults."""
    values = [item.value for item in items]
    told: list[int | None] = [item.time_ms for item in items]
    indexes: Sequence[int] = range(len(items))
    faults: list[FaultyRecord] = []
    try:
        if any(item.fault for item in items):
            raise ContractError("they are looked at one by one")
        keys = shape.keys_of(values)
        times = shape.times_of(values) if shape.has_time else told
    except ContractError:
        indexes, keys, times = [], [], []
        for index, item in enumerate(items):
            try:
                if item.fault is not None:
                    raise ContractError(item.fault)
                key = shape.key_of(item.value)
                time = shape.time_of(item.value) if shape.has_time else item.time_ms
            except ContractError as exc:
                faults.append(FaultyRecord(index, str(exc), body=_body_of(shape, item.value)))
            else:
                indexes.append(index)
                keys.append(key)
                times.append(time)
        values = [items[index].value for index in indexes]
    nobody: Any = None  # no message: nobody settles it
    delivery = Delivery(nobody, "", 0, False, "", name, Properties(headers={}), b"")
    return LogEntry(
        keys=keys,
        times=times,
        headers=[None] * len(values),
        values=values,
        indexes=indexes,
        faults=faults,
        partition=0,
        offset=offset,
        delivery=delivery,
    )


def _body_of(shape: RecordShape[Any], value: Any) -> bytes:
    try:
        return shape.codec.encode([value])
    except UnserializableValueError:
        return repr(value)[:1000].encode()
