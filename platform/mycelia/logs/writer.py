"""Appends to a log: gathered into batches, one batch of a partition on its way at a time, each append confirmed by its batch's confirm.

**Order.** The next batch of a partition leaves when the one before is confirmed or given up, so the order of a key holds whatever
happens to a connection, a channel or a leader; the link sends what was not confirmed again, with the same producer and sequence, by
which readers know it. What waits meanwhile makes the next batch larger; other partitions go on.

**Memory.** What is not confirmed yet is bounded (`buffer_bytes`); an append beyond it waits for room, in its turn.
"""

from __future__ import annotations

import asyncio
import logging
import time as clock
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import randrange
from typing import Any, Final, Generic, TypeVar

import msgspec

from mycelia.amqp import Link, Message
from mycelia.call import Arguments, Call, CallKind, Next, Outcome, get_current_call
from mycelia.clients.chains import MiddlewareFor, OutboundChains
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    ConfigError,
    MyceliaError,
    RuntimeStateError,
    Unroutable,
    UnserializableValueError,
    describe,
)
from mycelia.log_event import event
from mycelia.logs.append_call import (
    APPEND,
    AppendCall,
    append_target,
    carried_trace,
    entry_with_headers,
)
from mycelia.logs.batch_format import MAX_ENTRY_BYTES, decode_entry, entry_properties
from mycelia.logs.layout import LogLayout, declare_log
from mycelia.logs.open_batch import Appending, OpenBatch, Piece
from mycelia.logs.partitioning import checked_key, partition_of, partitions_of
from mycelia.logs.record import RecordHeaders, RecordKey
from mycelia.logs.record_shape import RecordShape, checked_column, time_ms_of
from mycelia.wire import OFF_LOOP_BYTES, compressor_of

__all__ = [
    "APPEND_DEFAULTS",
    "UNSET",
    "AppendOptions",
    "AppendStatistics",
    "LogWriter",
    "compressor_for",
    "piece_of_record",
]

log = logging.getLogger("mycelia.logs")

T = TypeVar("T")


CONFIRM_WITHIN: Final = 10.0
"""Seconds after which a batch that is not confirmed is sent again. A broker takes milliseconds; a cluster that chooses a new leader some seconds."""


class _Unset:
    """No key is named, which is not the same as the key `None`."""


UNSET: Final = _Unset()


@dataclass(frozen=True, slots=True)
class AppendOptions:
    """How appends are gathered and sent."""

    linger: float = 0.005
    """Seconds that a record may wait for others; 0: until the end of the loop's turn."""
    batch_bytes: int = 256 * 1024
    """A batch that has as many bytes leaves at once. A reader holds some dozens of them."""
    buffer_bytes: int = 32 * 1024 * 1024
    """Not confirmed yet, in all partitions; appends beyond it wait."""
    timeout: float = 30.0
    """Seconds that an append is tried. One behind others that are given up may take as long once more."""
    compression: str | None = "auto"
    """A name such as `zstd` or `zlib`; `auto`: zstd where it is installed (the extra `logs`); `None`: not at all."""
    compress_from_bytes: int = 4096
    """Smaller bodies go as they are."""


APPEND_DEFAULTS: Final = AppendOptions()

_MAX_RECORDS: Final = 10_000
"""Of a batch. More gain nothing, and whoever reads handles a batch at a time."""


class AppendStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer has done, and has under way."""

    log: str
    records: int
    """Confirmed."""
    batches: int
    """Confirmed."""
    bytes: int
    """Of the bodies confirmed, as they were sent."""
    failed: int
    """Records given up: their appends have raised."""
    unconfirmed_bytes: int
    waiting: int
    """Appends that wait for room."""


class _Lane:
    """One partition of the log, as its writer sees it."""

    __slots__ = ("open", "partition", "ready", "sending", "sequence", "task", "timer")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.sequence = 0
        self.open: OpenBatch | None = None
        self.ready: deque[OpenBatch] = deque()
        self.sending: OpenBatch | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None


class LogWriter(Generic[T]):
    """Appends records to a log. Lives on one event loop; share it among tasks.

    Args:
        link: an open link.
        middleware_for: what stands around each batch that leaves (`AppendCall`); asked once, at the first append.
    """

    def __init__(
        self,
        link: Link,
        layout: LogLayout,
        shape: RecordShape[T],
        options: AppendOptions = APPEND_DEFAULTS,
        *,
        middleware_for: MiddlewareFor = lambda _: (),
    ) -> None:
        self._link = link
        self._layout = layout
        self._shape = shape
        self._options = options
        self._what = f'log "{layout.name}"'
        self._compressor = compressor_for(options.compression, self._what)
        self._loop = asyncio.get_running_loop()
        self._lanes = [_Lane(partition) for partition in range(layout.partitions)]
        self._producer = uuid.uuid4().hex
        self._target = append_target(layout.name)
        self._chains = OutboundChains(CallKind.LOG, middleware_for, self._publish_call)
        first = randrange(
            layout.partitions
        )  # so that many short-lived writers do not all begin with partition 0
        self._turns = cycle([*range(first, layout.partitions), *range(first)])
        self._unconfirmed_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._is_closed = False
        self._records = self._batches = self._bytes = self._failed = 0

    @property
    def producer(self) -> str:
        """Its id in the entries that it writes, new for each writer."""
        return self._producer

    def statistics(self) -> AppendStatistics:
        return AppendStatistics(
            log=self._layout.name,
            records=self._records,
            batches=self._batches,
            bytes=self._bytes,
            failed=self._failed,
            unconfirmed_bytes=self._unconfirmed_bytes,
            waiting=len(self._waiting),
        )

    # --- appending -------------------------------------------------------------------------------

    async def append(
        self,
        value: T,
        *,
        key: RecordKey | _Unset = UNSET,
        time: Any = None,
        headers: RecordHeaders = None,
    ) -> None:
        """Append one record; returns when the broker has it.

        Cancelling the wait does not take the record back.

        Args:
            key: in place of the one that the log takes from the value. Records with the key `None` go to the partitions in turn.
            time: a datetime in a time zone or milliseconds since the epoch; without it, what the log takes from the value, else now.
            headers: of the record: text, numbers and what else msgpack can carry.

        Raises:
            UnserializableValueError: the value, or a header, is not what the log is of; nothing was appended.
            ContractError: the key or the time is none; nothing was appended.
            BrokerUnavailable, BrokerBlocked: not confirmed in time; it may or may not be in the log.
            PublishRejected: the broker refused it for longer than it is patient.
        """
        of_value, piece = piece_of_record(self._shape, value, key, time, headers)
        partition = (
            next(self._turns)
            if of_value is None
            else partition_of(of_value, self._layout.partitions)
        )
        await self._append([(partition, piece)])

    async def append_many(
        self,
        values: Sequence[T],
        *,
        keys: Sequence[RecordKey] | None = None,
        times: Sequence[Any] | None = None,
        headers: Sequence[RecordHeaders] | None = None,
        producer: str | None = None,
        sequence: int | None = None,
    ) -> None:
        """Append records, in their order; returns when the broker has them all.

        Those of one partition are together in a batch, or follow each other in several; other appends may come between. When
        it raises for the broker's sake, some of them may be in the log and others not.

        Args:
            keys, times, headers: of each record, in place of what `append()` would take.
            producer, sequence: whose batch this is and its number, from 0, for a program that may append it again after a crash: who
                reads drops the second one. A producer's batches are numbered one by one, the same number is the same records, and one
                program at a time is a producer. They are one batch for each partition then, and must fit into one.

        Raises:
            As `append()`; ConfigError: one of producer and sequence without the other, or none that can be. TypeError: the values are no
                sequence of records, but one text, a dictionary, a set, a generator.
        """
        count = len(checked_column(values, "append_many()"))
        number = _checked_number(producer, sequence, self._what)
        for name, column in (("keys", keys), ("times", times), ("headers", headers)):
            if column is not None and len(checked_column(column, f"append_many({name}=)")) != count:
                raise ValueError(f"append_many() of {count} values with {len(column)} {name}")
        if not count:
            return
        if keys is None:
            keys = self._shape.keys_of(values)
        elif set(map(type, keys)) != {str}:
            keys = [checked_key(key) for key in keys]
        at = _times(self._shape, values, times)
        pieces: list[tuple[int, Piece]] = []
        turn = next(self._turns) if number is None else number[1] % self._layout.partitions
        for partition, chosen in self._by_partition(keys, turn).items():
            if number is not None:
                pieces.append(
                    (partition, self._whole(partition, chosen, values, keys, at, headers))
                )
            elif len(chosen) == count:
                self._cut(pieces, partition, values, keys, at, headers)
            else:
                own = None if headers is None else [headers[index] for index in chosen]
                self._cut(
                    pieces,
                    partition,
                    [values[index] for index in chosen],
                    [keys[index] for index in chosen],
                    [at[index] for index in chosen],
                    own,
                )
        await self._append(pieces, number)

    def _whole(
        self,
        partition: int,
        chosen: Sequence[int],
        values: Sequence[T],
        keys: Sequence[RecordKey],
        times: Sequence[int | None],
        headers: Sequence[RecordHeaders] | None,
    ) -> Piece:
        """Records of one partition that are to be one batch.

        Raises:
            UnserializableValueError: they do not fit into one.
        """
        piece = Piece(
            [keys[index] for index in chosen],
            [times[index] for index in chosen],
            None if headers is None else [headers[index] for index in chosen],
            self._shape.codec.encode([values[index] for index in chosen]),
        )
        if len(chosen) > _MAX_RECORDS or piece.size > MAX_ENTRY_BYTES // 2:
            raise UnserializableValueError(
                f"{self._what}: {len(chosen)} records of {piece.size} bytes for partition {partition} with one sequence; a batch has "
                f"{_MAX_RECORDS} records and {MAX_ENTRY_BYTES // 2} bytes at most. Nothing was appended."
            )
        return _checked_piece(piece, self._what)

    def _by_partition(self, keys: Sequence[RecordKey], turn: int) -> dict[int, Sequence[int]]:
        """Which records go to which partition, in their order; those without a key together to `turn`: one batch rather than one for
        each partition."""
        partitions = self._layout.partitions
        if keys.count(keys[0]) == len(keys):
            first = turn if keys[0] is None else partition_of(keys[0], partitions)
            return {first: range(len(keys))}
        chosen: dict[int, list[int]] = {}
        for index, partition in enumerate(partitions_of(keys, partitions, lambda: turn)):
            if partition in chosen:
                chosen[partition].append(index)
            else:
                chosen[partition] = [index]
        return dict(chosen)

    def _cut(
        self,
        pieces: list[tuple[int, Piece]],
        partition: int,
        values: Sequence[T],
        keys: Sequence[RecordKey],
        times: Sequence[int | None],
        headers: Sequence[RecordHeaders] | None,
    ) -> None:
        """Encode records of one partition, in pieces that fit into a batch."""
        count = len(values)
        if count <= _MAX_RECORDS:
            piece = Piece(keys, times, headers, self._shape.codec.encode(values))
            if piece.size <= self._options.batch_bytes or count == 1:
                pieces.append((partition, _checked_piece(piece, self._what)))
                return
            parts = min(count, piece.size // self._options.batch_bytes + 1)
        else:
            parts = count // _MAX_RECORDS + 1
        step = -(-count // parts)
        for begin in range(0, count, step):
            span = slice(begin, begin + step)
            own = None if headers is None else headers[span]
            self._cut(pieces, partition, values[span], keys[span], times[span], own)

    async def _append(
        self, pieces: list[tuple[int, Piece]], number: tuple[str, int] | None = None
    ) -> None:
        loop = self._loop
        timeout = self._options.timeout
        parent = get_current_call()
        left = None if parent is None else parent.remaining()
        is_shorter = left is not None and left < timeout
        if is_shorter:  # nobody waits for what the call being handled does after its deadline
            assert left is not None
            timeout = max(left, 0.0)
        deadline = loop.time() + timeout
        appending = Appending(len(pieces), loop)
        try:
            for partition, piece in pieces:
                if not self._reserve_nowait(piece.size):
                    await self._reserve(piece.size, deadline)
                self._add(self._lanes[partition], piece, appending, deadline, number)
        except BaseException:
            appending.done.cancel()  # of a part of it nobody will ask any more
            raise
        if not is_shorter:
            await appending.done
            return
        try:  # its batch may be tried for longer, for the sake of others
            async with asyncio.timeout_at(deadline):
                await appending.done
        except TimeoutError:
            raise BrokerUnavailable(
                f"{self._what}: not confirmed within the {timeout:.3g} s that were left to the call being handled; it may or may "
                "not be in the log."
            ) from None

    # --- room ------------------------------------------------------------------------------------

    def _reserve_nowait(self, size: int) -> bool:
        """Take room for `size` bytes, if there is and nobody waits for it. One thing larger than all the room goes alone."""
        taken = self._unconfirmed_bytes
        if self._waiting or (taken and taken + size > self._options.buffer_bytes):
            return False
        self._unconfirmed_bytes += size
        return True

    async def _reserve(self, size: int, deadline: float) -> None:
        """Take room for `size` bytes, behind those who wait already.

        Raises:
            BrokerUnavailable: there was none by `deadline`.
            RuntimeStateError: the writer was closed meanwhile.
        """
        if self._is_closed:
            raise self._closed()
        turn: asyncio.Future[None] = self._loop.create_future()
        entry = (size, turn)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release(size)  # it had just been given
            elif entry in self._waiting:
                self._waiting.remove(entry)
                self._let_in()
            if not isinstance(exc, TimeoutError):
                raise
            raise BrokerUnavailable(
                f"{self._what}: nothing was appended: {self._unconfirmed_bytes} bytes have been waiting for the broker's confirm "
                f"for {self._options.timeout:g} s. The broker is away, or slower than what is appended."
            ) from None

    def _release(self, size: int) -> None:
        self._unconfirmed_bytes -= size
        self._let_in()

    def _let_in(self) -> None:
        """Give room to those who wait for it, in their order, as far as there is some."""
        waiting = self._waiting
        while waiting:
            size, turn = waiting[0]
            taken = self._unconfirmed_bytes
            if taken and taken + size > self._options.buffer_bytes:
                return
            waiting.popleft()
            if not turn.done():
                self._unconfirmed_bytes += size
                turn.set_result(None)

    # --- batches ---------------------------------------------------------------------------------

    def _add(
        self,
        lane: _Lane,
        piece: Piece,
        appending: Appending,
        deadline: float,
        number: tuple[str, int] | None,
    ) -> None:
        if self._is_closed:
            self._release(piece.size)
            raise self._closed()
        options = self._options
        batch = lane.open
        if batch is not None and (
            batch.size + piece.size > options.batch_bytes
            or len(batch) + len(piece.keys) > _MAX_RECORDS
            or number is not None
        ):
            lane.ready.append(batch)
            batch = None
        if batch is None:
            batch = lane.open = OpenBatch(self._loop.time() + options.linger, number)
        batch.add(piece, appending, deadline)
        batch.origins.add(self._chains.of(self._layout.name, APPEND) is not None)
        if batch.size >= options.batch_bytes or number is not None:
            lane.ready.append(batch)
            lane.open = None
        if lane.task is None:
            self._rouse(lane)

    def _rouse(self, lane: _Lane) -> None:
        """Have a lane that is at rest send what it has, now or when it has waited long enough."""
        if lane.ready:
            self._start(lane)
        elif lane.open is not None and lane.timer is None:
            lane.timer = self._loop.call_at(lane.open.ready_at, self._start, lane)

    def _start(self, lane: _Lane) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if lane.task is None:
            name = f"mycelia:append:{self._layout.name}-{lane.partition}"
            lane.task = self._loop.create_task(self._run(lane, is_due=True), name=name)

    async def _run(self, lane: _Lane, is_due: bool) -> None:
        """Send what is ready, one batch after the other.

        Args:
            is_due: what is open has waited long enough, as far as the timer is concerned: it may fire a tick early.
        """
        try:
            while (batch := self._next(lane, is_due)) is not None:
                is_due = False
                lane.sending = batch
                error: Exception | None = BrokerUnavailable(
                    f"{self._what}: the writer was stopped before the broker confirmed; it may or may not be in the log."
                )
                try:
                    error = await self._send(lane, batch)
                finally:
                    self._settle(batch, error)
        finally:
            lane.task = lane.sending = None
            self._rouse(lane)

    def _next(self, lane: _Lane, is_due: bool) -> OpenBatch | None:
        if lane.ready:
            return lane.ready.popleft()
        batch = lane.open
        if batch is None or not (is_due or self._is_closed or self._loop.time() >= batch.ready_at):
            return None
        lane.open = None
        return batch

    def _settle(self, batch: OpenBatch, error: Exception | None) -> None:
        if error is None:
            self._records += len(batch)
            self._batches += 1
        else:
            self._failed += len(batch)
        batch.settle(error)
        self._release(batch.size)

    async def _send(self, lane: _Lane, batch: OpenBatch) -> Exception | None:
        """Publish a batch, and say what became of it. Never raises but for a cancellation."""
        try:
            plain = batch.body()
            body, compression = await self._packed(plain)
            producer, sequence = batch.number or (self._producer, lane.sequence)
            if batch.number is None:
                lane.sequence += 1
            # The link tells by the message id which one came back: the partition belongs into it.
            message_id = f"{producer}-{lane.partition}-{sequence}"
            properties = entry_properties(len(batch), producer, sequence, compression, message_id)
            message = Message(
                self._layout.name, str(lane.partition), body, properties, mandatory=True
            )
            chain = self._chains.of(self._layout.name, APPEND)
            if chain is not None:
                outcome = await self._through(chain, batch, lane.partition, plain, message)
                error = outcome.error
                if error is None or isinstance(error, Exception):
                    return error
                return RuntimeStateError(f"{self._what}: a middleware gave up: {describe(error)}.")
            if not batch.origins.is_mixed and (trace := carried_trace(batch.origins.chosen()[0])):
                message = entry_with_headers(message, trace)
            await self._publish_entry(message, batch.deadline)
        except MyceliaError as exc:
            return exc
        except Exception as exc:
            log.exception(event("log_batch_failed", log=self._layout.name, error=describe(exc)))
            return exc
        return None

    async def _through(
        self, chain: Next, batch: OpenBatch, partition: int, plain: bytes, message: Message
    ) -> Outcome:
        """Send a batch through the middleware, in the context of one of its appends."""
        codec = self._shape.codec
        origins = batch.origins
        chosen, context = origins.chosen()

        def records(call: Call) -> Arguments:
            properties = entry_properties(len(batch), self._producer, 0)
            return (decode_entry(properties, plain, codec).records,), {}

        call = AppendCall(
            self._target,
            headers=carried_trace(chosen),
            deadline=clock.monotonic() + self._left(batch.deadline),
            read=records,
            entry=message,
            partition=partition,
            records=len(batch),
            origins=origins.calls,
            chosen=chosen,
            is_mixed=origins.is_mixed,
        )

        async def pass_through() -> Outcome:
            return await chain(call)

        return await self._loop.create_task(pass_through(), context=context)

    async def _publish_call(self, call: Call) -> Outcome:
        """The end of the chain."""
        assert isinstance(call, AppendCall)
        try:
            message = call.leaving()
            left = call.remaining()
            await self._publish_entry(message, self._loop.time() + (0.0 if left is None else left))
        except Exception as exc:  # noqa: BLE001  the end of a chain never raises: the error is the outcome
            return Outcome(error=exc)
        return Outcome()

    async def _publish_entry(self, message: Message, deadline: float) -> None:
        try:
            await self._publish(message, deadline)
        except Unroutable:
            # The stream was deleted, or unbound. The link makes it anew.
            log.warning(
                event("log_partition_missing", log=self._layout.name, partition=message.routing_key)
            )
            await declare_log(self._link, self._layout, self._left(deadline))
            await self._publish(message, deadline)
        self._bytes += len(message.body)

    async def _publish(self, message: Message, deadline: float) -> None:
        """Until the broker has it. What is not confirmed for a while is sent again, as it was: readers drop the second one.

        A connection that is whole is no sign that a confirm will come: the node at its other end may have had the batch on its way to one
        that died. The link sends it on another channel then, if the broker is one that needs that (docs/decisions/0037).
        """
        what: dict[str, Any] = {"log": self._layout.name, "partition": message.routing_key}
        while True:
            began = self._loop.time()
            try:
                await self._link.publish(message, timeout=min(self._left(deadline), CONFIRM_WITHIN))
            except (BrokerUnavailable, BrokerBlocked) as exc:
                if self._left(deadline) <= 0:
                    log.warning(event("log_append_given_up", **what, reason=exc))
                elif self._loop.time() - began >= CONFIRM_WITHIN * 0.9:
                    log.info(event("log_batch_sent_again", **what, reason=exc))
                    continue
                raise
            return

    def _left(self, deadline: float) -> float:
        return max(deadline - self._loop.time(), 0.0)

    async def _packed(self, body: bytes) -> tuple[bytes, str | None]:
        """A body as it is sent, and what it is compressed with."""
        if self._compressor is None or len(body) < self._options.compress_from_bytes:
            return body, None
        method, compress = self._compressor
        packed = (
            compress(body)
            if len(body) <= OFF_LOOP_BYTES
            else await asyncio.to_thread(compress, body)
        )
        return (packed, method) if len(packed) < len(body) else (body, None)

    # --- the end ---------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Wait until all that has been appended so far is confirmed or given up. Bounded by the appends' own time."""
        batches = [
            batch
            for lane in self._lanes
            for batch in (lane.sending, *lane.ready, lane.open)
            if batch is not None
        ]
        if not batches:
            return
        watch = Appending(len(batches), self._loop, raises=False)
        for batch in batches:
            batch.watch(watch)
        for lane in self._lanes:
            if lane.task is None and lane.open is not None:
                self._start(lane)
        await watch.done

    async def aclose(self, timeout: float = 10.0) -> None:
        """Take no more, send what is there, and give up what is not confirmed within `timeout` seconds. Idempotent.

        What is given up raises `BrokerUnavailable` where it was appended.
        """
        self._is_closed = True
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(self._closed())
        try:
            async with asyncio.timeout(timeout):
                await self.flush()
        except TimeoutError:
            log.warning(
                event(
                    "log_unconfirmed_at_close",
                    log=self._layout.name,
                    bytes=self._unconfirmed_bytes,
                    waited_s=timeout,
                )
            )
        finally:
            await self._give_up()

    async def _give_up(self) -> None:
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        for lane in self._lanes:
            if lane.timer is not None:
                lane.timer.cancel()
                lane.timer = None
            left = [*lane.ready, *([lane.open] if lane.open is not None else [])]
            lane.ready.clear()
            lane.open = None
            for batch in left:
                self._settle(batch, self._closed())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _closed(self) -> RuntimeStateError:
        return RuntimeStateError(f"{self._what}: nothing was appended: its writer is closed.")


def piece_of_record(
    shape: RecordShape[T], value: T, key: RecordKey | _Unset, time: Any, headers: RecordHeaders
) -> tuple[RecordKey, Piece]:
    """A record as what is put into a batch, and its key; see `LogWriter.append()`.

    Raises:
        UnserializableValueError, ContractError: it is none of the log.
    """
    of_value = shape.key_of(value) if isinstance(key, _Unset) else checked_key(key)
    at = _times(shape, [value], None if time is None else [time])
    piece = Piece(
        (of_value,), at, None if headers is None else (headers,), shape.codec.encode([value])
    )
    return of_value, _checked_piece(piece, shape.what)


def _times(
    shape: RecordShape[T], values: Sequence[T], times: Sequence[Any] | None
) -> Sequence[int | None]:
    if times is not None:
        return [time_ms_of(time) for time in times]
    if shape.has_time:
        return shape.times_of(values)
    return [int(clock.time() * 1000)] * len(values)


def _checked_piece(piece: Piece, what: str) -> Piece:
    """Refuse what no reader would take.

    Raises:
        UnserializableValueError: too large, or headers that msgpack cannot carry.
    """
    if piece.size > MAX_ENTRY_BYTES // 2:
        raise UnserializableValueError(
            f"{what}: a record of {piece.size} bytes, and one may have {MAX_ENTRY_BYTES // 2}. Nothing was appended."
        )
    if piece.headers is not None:
        for headers in piece.headers:
            _check_headers(headers, what)
    return piece


def _checked_number(
    producer: str | None, sequence: int | None, what: str
) -> tuple[str, int] | None:
    if producer is None and sequence is None:
        return None
    if not isinstance(producer, str) or not 0 < len(producer.encode("utf-8", "replace")) <= 200:
        raise ConfigError(
            f"{what}: producer={producer!r:.60}; expected text of up to 200 bytes, together with sequence=."
        )
    if type(sequence) is not int or not 0 <= sequence < 2**63:
        raise ConfigError(
            f"{what}: sequence={sequence!r:.60}; expected a whole number from 0, together with producer=."
        )
    return producer, sequence


_encode_headers = msgspec.msgpack.Encoder().encode


def _check_headers(headers: object, what: str) -> None:
    if headers is None:
        return
    try:
        _encode_headers(headers)
        is_good = type(headers) is dict and {str}.issuperset(map(type, headers))
        problem = "" if is_good else "expected a dict whose keys are text"
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        problem = str(exc)
    if problem:
        raise UnserializableValueError(
            f"{what}: the headers {headers!r:.80} cannot be appended: {problem}. Nothing was appended."
        )


def compressor_for(name: str | None, what: str) -> tuple[str, Callable[[bytes], bytes]] | None:
    """The method of that name, if it is there; `auto` takes what is.

    Raises:
        ConfigError: no such method here.
    """
    if name is None:
        return None
    try:
        return compressor_of("zstd" if name == "auto" else name)
    except ConfigError as exc:
        if name == "auto":
            return None
        hint = ' It is installed with pip install "mycelia[logs]".' if name == "zstd" else ""
        raise ConfigError(f"{what}: compression={name!r}: {exc}{hint}") from exc
