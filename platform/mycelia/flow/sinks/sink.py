"""What a sink is: where results go that are no log's and no event. One small protocol for ours, and one smaller for users' own.

    pack      at the commit, in the engine's thread: records become bodies, which are kept in the outbox in the commit's transaction
    deliver   after it, on the loop: one body after the other, until the sink has it; again, after a crash

A body is the same however often it is delivered. Each has its place: the flow's partition and output, and a number that is counted on from
commit to commit, so that a sink may know what it has had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import msgspec

from mycelia.errors import FlowError
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.runtime import Container

__all__ = ["FlowSink", "OwnSink", "SinkPlace", "SinkRecord", "SinkRefused", "SinkWriter"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)

RECORDS_AT_ONCE = 500
"""Of one body, where a sink does not say otherwise."""


class SinkRecord(msgspec.Struct, Generic[T_co], frozen=True):
    """A record on its way to a sink.

    Attributes:
        id: the same if it is delivered again, and no other record's.
        key: that of the stream; None if it has no keys.
        time_ms: its event time.
    """

    id: str
    key: Any
    time_ms: int
    value: T_co


class SinkPlace(msgspec.Struct, frozen=True):
    """Which body it is.

    Attributes:
        flow: the flow's partition and generation: `group/generation/partition`. Nobody else delivers under it, and one that begins anew has another.
        output: the output's name.
        number: counted from 0, on and on; bodies are delivered in this order, and after a crash again from one of those that had been.
    """

    flow: str
    output: str
    number: int


class SinkRefused(FlowError):
    """The other side has taken a look at a record and will never have it. What becomes of the record is the flow's `on_error=`.

    Attributes:
        record_id: whose it is; None: of all of them that were delivered together.
        also: of further records of them.
    """

    def __init__(self, text: str, record_id: str | None = None) -> None:
        super().__init__(text)
        self.record_id = record_id
        self.also: list[SinkRefused] = []


@runtime_checkable
class SinkWriter(Protocol[T_contra]):
    """A sink of your own, to be named in `stream.to(…)`.

        class Redis:
            async def write(self, records: Sequence[SinkRecord[HourlyDelay]]) -> None:
                await self.redis.mset({one.id: one.value.mean for one in records})

    It returns when it has all of them. What it raises is told, and it is called again with the same records, after pauses, for as long as it
    takes; the flow waits for it. After a crash it gets some of them again, with the same ids.
    """

    async def write(self, records: Sequence[SinkRecord[T_contra]], /) -> None:
        """Have these; in the order of the stream, 500 at most. Called on the event loop, once at a time for each partition."""


class FlowSink(Generic[T]):
    """What `stream.to()` takes beside logs. Ours derive from it.

    Attributes:
        name: of the output, unless `to(name=…)` gives it another; no secrets.
        leaves_out_repeats: whether a body that comes again changes nothing where it goes to.
    """

    name: str
    leaves_out_repeats = False

    async def open(self, container: Container) -> None:
        """The service starts: see that it can be.

        Raises:
            ConfigError: it cannot.
        """

    def pack(
        self, records: list[SinkRecord[T]], kept: dict[str, int], now_ms: int, flow: str
    ) -> list[bytes]:
        """The bodies for these, in their order. Pure: the same records and the same `kept` give the same.

        Args:
            records: perhaps none, if `is_due()`.
            kept: numbers of the sink's own for this partition, kept with the checkpoint. Counted on here.
            flow: the place's.
        """
        return [
            pack_records(records[at : at + RECORDS_AT_ONCE])
            for at in range(0, len(records), RECORDS_AT_ONCE)
        ]

    def is_due(self, kept: dict[str, int], now_ms: int) -> bool:
        """Whether there is something to `pack()` though no record has come."""
        return False

    async def deliver(self, body: bytes, place: SinkPlace, done: set[str]) -> None:
        """Return when the other side has it. Cancelled, it may or may not have it.

        Args:
            done: ids of records of the body that are not to be delivered, as they have been, or are dead letters. Kept from attempt to attempt:
                a sink that delivers one by one adds to it.

        Raises:
            SinkRefused: it will never have it.
            RetryLater: not now; it says when.
        """
        raise NotImplementedError

    def told_of(self, body: bytes) -> list[SinkRecord[Any]]:
        """The records of a body, for dead letters."""
        return unpack_records(body)

    async def aclose(self) -> None:
        """The service ends. Idempotent."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def pack_records(records: Sequence[SinkRecord[Any]]) -> bytes:
    """Records as bytes, each value coming back as what it was.

    Raises:
        StateIncompatible: a value is of a class that nothing finds again.
    """
    return encode_state([[one.id, one.key, one.time_ms, one.value] for one in records])


def unpack_records(body: bytes) -> list[SinkRecord[Any]]:
    return [SinkRecord(*one) for one in decode_state(body)]


class OwnSink(FlowSink[Any]):
    """A user's `SinkWriter`. Its `open()` and `aclose()`, if it has them, are called with the service's start and end."""

    def __init__(self, writer: SinkWriter[Any]) -> None:
        self.name = type(writer).__name__
        self._writer = writer

    async def open(self, container: Container) -> None:
        await _call_if_there(self._writer, "open")

    async def deliver(self, body: bytes, place: SinkPlace, done: set[str]) -> None:
        await self._writer.write(unpack_records(body))

    async def aclose(self) -> None:
        await _call_if_there(self._writer, "aclose")


async def _call_if_there(writer: object, hook: str) -> None:
    method = getattr(writer, hook, None)
    if method is not None:
        await method()
