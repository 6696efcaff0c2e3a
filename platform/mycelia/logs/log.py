"""`Log`: a partitioned log, declared where it is used. In a service it injects a writer; handlers, flows and programs name it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Unpack, overload

from mycelia.amqp import Link
from mycelia.clients.chains import MiddlewareFor
from mycelia.clients.from_thread import run_from_thread
from mycelia.clients.two_ways import Injects, TwoWays
from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError
from mycelia.logs.layout import SEGMENT_BYTES, LogLayout, declare_log, log_layout
from mycelia.logs.position import StartAt
from mycelia.logs.reader import DEFAULT_BUFFER_BYTES, LogReader
from mycelia.logs.record import RecordHeaders, RecordKey
from mycelia.logs.record_shape import Extractor, RecordShape
from mycelia.logs.writer import (
    APPEND_DEFAULTS,
    UNSET,
    AppendOptions,
    AppendStatistics,
    LogWriter,
    compressor_for,
)

__all__ = ["BlockingLogWriter", "Log"]

T = TypeVar("T")

CLOSE_TIMEOUT = 8.0
"""Seconds that a stop waits for confirms. Below the 10 s that the container gives to a hook."""


class BlockingLogWriter(Generic[T]):
    """As `LogWriter`, for threads beside the event loop: it blocks until the broker has the records."""

    __slots__ = ("_loop", "_timeout", "_writer")

    def __init__(
        self, writer: LogWriter[T], loop: asyncio.AbstractEventLoop, timeout: float
    ) -> None:
        self._writer = writer
        self._loop = loop
        self._timeout = 2 * timeout  # of an append behind others that are given up

    def append(
        self,
        value: T,
        *,
        key: RecordKey | Any = UNSET,
        time: Any = None,
        headers: RecordHeaders = None,
    ) -> None:
        """As `LogWriter.append()`; returns when the broker has the record."""
        appended = self._writer.append(value, key=key, time=time, headers=headers)
        run_from_thread(appended, self._loop, self._timeout)

    def append_many(
        self,
        values: Sequence[T],
        *,
        keys: Sequence[RecordKey] | None = None,
        times: Sequence[Any] | None = None,
        headers: Sequence[RecordHeaders] | None = None,
        producer: str | None = None,
        sequence: int | None = None,
    ) -> None:
        """As `LogWriter.append_many()`; returns when the broker has the records."""
        appended = self._writer.append_many(
            values, keys=keys, times=times, headers=headers, producer=producer, sequence=sequence
        )
        run_from_thread(appended, self._loop, self._timeout)


def _seconds_above_0(duration: Duration | None, name: str) -> float | None:
    """
    Raises:
        ConfigError: it is no duration, or none at all.
    """
    if duration is None:
        return None
    seconds = seconds_of(duration, name)
    if not seconds:
        raise ConfigError(f"{name}{duration!r}: expected more than no time.")
    return seconds


class LogArguments(TypedDict, total=False):
    """What a `Log` takes beside its name and type, as keyword arguments."""

    key: Extractor | None
    time: Extractor | None
    partitions: int
    retain: Duration | None
    retain_bytes: int | None
    segment_bytes: int
    linger: Duration
    batch_bytes: int
    buffer_bytes: int
    timeout: Duration | None
    compression: str | None


_DEFAULTS: Mapping[str, Any] = {
    "key": None,
    "time": None,
    "partitions": 8,
    "retain": "7d",
    "retain_bytes": None,
    "segment_bytes": SEGMENT_BYTES,
    "linger": APPEND_DEFAULTS.linger,
    "batch_bytes": APPEND_DEFAULTS.batch_bytes,
    "buffer_bytes": APPEND_DEFAULTS.buffer_bytes,
    "timeout": None,
    "compression": APPEND_DEFAULTS.compression,
}


class Log(TwoWays, Generic[T]):
    """A log: records split by key into partitions, kept for a time, read again and again. Injects a writer (`LogWriter`).

        class Tower:
            name = "tower"
            departed = Log("flights.departed", of=Departed, key="origin", partitions=8, retain="7d")

            @rpc
            async def depart(self, flight: Departed) -> None:
                await self.departed.append(flight)

    In a `def` method it blocks. Programs write with `Client.append()` and read with `reader()`. Whoever comes first declares the log at
    the broker; all must say the same of `partitions` and what is retained.

    Args:
        name: of the exchange; the partitions are the streams `name-0`, `name-1`, …
        of: the type of the values: a dataclass, a `TypedDict`, a `msgspec.Struct`, or what is made of these; any by default. A value that
            does not fit is refused where it is appended.
        key: a field's name, or a function of the value: records of one key are in one partition, in their order. Without it
            records have no key, unless `append(key=…)` names one.
        time: a field's name, or a function of the value: a datetime in a time zone, or milliseconds since the epoch. Without it
            the time of an append is a record's time.
        partitions: how many, 8 by default; never to be changed, because keys would move.
        retain: how long records are kept, "7d" by default, in whole files of `segment_bytes`; `None`: for ever.
        retain_bytes: how many bytes a partition keeps at most, in whole files; `None`: any.
        segment_bytes: of one file, 64 MiB by default; the last is never deleted.
        linger: how long a record may wait for others to share a message with; 5 ms by default, half of `timeout` at most.
        batch_bytes: a batch of that size leaves at once; 256 KiB by default.
        buffer_bytes: what may be unconfirmed at once, 32 MiB by default; appends beyond it wait.
        timeout: how long an append is tried; the setting `mycelia.publish_timeout` by default.
        compression: of batches from 4 KiB up: `"zstd"` (the extra `logs`), `"zlib"`, …; `"auto"`, the default: zstd where it is installed; `None`: not at all.

    Raises:
        ConfigError: one of these cannot be.
    """

    needs_broker = True

    @overload
    def __init__(
        self: Log[T], name: str, *, of: type[T], **options: Unpack[LogArguments]
    ) -> None: ...
    @overload
    def __init__(
        self: Log[Any], name: str, *, of: None = None, **options: Unpack[LogArguments]
    ) -> None: ...
    def __init__(self, name: str, *, of: Any = None, **options: Unpack[LogArguments]) -> None:
        what = f'log "{name}"'
        chosen: dict[str, Any] = {**_DEFAULTS, **options}
        self.name = name
        self.layout: LogLayout = log_layout(
            name,
            chosen["partitions"],
            chosen["retain"],
            chosen["retain_bytes"],
            chosen["segment_bytes"],
        )
        self.shape: RecordShape[T] = RecordShape(what, of, chosen["key"], chosen["time"])
        self.split_by: Extractor | None = chosen["key"]
        """What it is split by, as it was given."""
        for option in ("batch_bytes", "buffer_bytes"):
            size = chosen[option]
            if type(size) is not int or size < 1:
                raise ConfigError(f"{what}: {option}={size!r}; expected a number of bytes.")
        self._linger = seconds_of(chosen["linger"], f"{what}: linger=")
        self._batch_bytes: int = chosen["batch_bytes"]
        self._buffer_bytes: int = chosen["buffer_bytes"]
        self._timeout = _seconds_above_0(chosen["timeout"], f"{what}: timeout=")
        self._compression: str | None = chosen["compression"]
        self._writer: LogWriter[T] | None = None
        self.compressor = compressor_for(self._compression, what)
        """The content type of the method that its batches are compressed with, and the function; None: they are not."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type) -> Log[T]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None) -> LogWriter[T]: ...
        def __get__(self, instance: object, owner: type | None = None) -> Any: ...

    @property
    def blocking(self) -> Injects[BlockingLogWriter[T]]:
        """The same for `def` methods, as type checkers see it: it returns when the broker has the records."""
        blocking: Injects[BlockingLogWriter[T]] = self.made_blocking()
        return blocking

    @property
    def partitions(self) -> int:
        return self.layout.partitions

    def _options(self, timeout: float) -> AppendOptions:
        timeout = timeout if self._timeout is None else self._timeout
        return AppendOptions(
            linger=min(self._linger, timeout / 2),  # or nothing would ever leave in time
            batch_bytes=self._batch_bytes,
            buffer_bytes=self._buffer_bytes,
            timeout=timeout,
            compression=self._compression,
        )

    # --- for programs ----------------------------------------------------------------------------

    async def open_writer(
        self, link: Link, timeout: float, *, middleware_for: MiddlewareFor = lambda _: ()
    ) -> LogWriter[T]:
        """Declare the log, and make a writer that the caller closes. `Client.append()` does this.

        Args:
            timeout: seconds for the declaration, and for each append where the log says nothing.
            middleware_for: what stands around each batch that leaves.
        """
        await declare_log(link, self.layout, timeout)
        return LogWriter(
            link, self.layout, self.shape, self._options(timeout), middleware_for=middleware_for
        )

    def reader(
        self,
        link: Link,
        partition: int,
        start: StartAt = "first",
        *,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> LogReader[T]:
        """A reader of one partition: `async with log.reader(client.link, 0) as reader: async for entry in reader: …`

        The log must have been declared, by a writer or by `declare()`.

        Args:
            start: where to begin: `"first"`, `"last"`, `"next"`, an offset, a time, or another reader's position.
            buffer_bytes: what may have come and not been handled yet.
        """
        return LogReader(link, self.layout, self.shape, partition, start, buffer_bytes=buffer_bytes)

    async def declare(self, link: Link, timeout: float | None = None) -> None:
        """Make sure that the log is there, as it is described here.

        Raises:
            TopologyError: there is one that is not the same.
        """
        await declare_log(link, self.layout, timeout)

    # --- in a service ----------------------------------------------------------------------------

    async def setup(self) -> None:
        timeout = self.container.settings.mycelia.publish_timeout
        await declare_log(self.container.host.link, self.layout)
        self._writer = LogWriter(
            self.container.host.link,
            self.layout,
            self.shape,
            self._options(timeout),
            middleware_for=self.container.middleware_for,
        )

    async def stop(self) -> None:
        if self._writer is not None:
            await self._writer.aclose(CLOSE_TIMEOUT)

    async def kill(self) -> None:
        if self._writer is not None:
            await self._writer.aclose(0)

    def statistics(self) -> AppendStatistics | None:
        return None if self._writer is None else self._writer.statistics()

    def awaited(self) -> LogWriter[T]:
        assert self._writer is not None
        return self._writer

    def waiting(self, loop: asyncio.AbstractEventLoop) -> BlockingLogWriter[T]:
        timeout = self._options(self.container.settings.mycelia.publish_timeout).timeout
        return BlockingLogWriter(self.awaited(), loop, timeout)

    def __repr__(self) -> str:
        return f"<Log {self.name!r}{'' if self.is_bound() else ' [unbound]'}>"
