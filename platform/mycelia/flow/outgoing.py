"""What leaves a flow, as messages: batches of a log, events, and bodies for sinks. Pure.

The same records have the same ids, and a batch the same producer and sequence, however often it is published: whoever reads a log drops the
second one, as it drops a batch that a writer had to send again. So the messages are made once, with the commit, and kept in its outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any, Final

import msgspec

from mycelia.amqp import Message, Properties
from mycelia.errors import ContractError, FlowError, UnserializableValueError, describe
from mycelia.flow.delivery import sink_message
from mycelia.flow.engine import Given
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.sinks.sink import FlowSink, SinkRecord, SinkRefused
from mycelia.flow.user_code import repr_of_value
from mycelia.logs import Log, RecordKey
from mycelia.logs.batch_format import MAX_ENTRY_BYTES, encode_columns, entry_properties
from mycelia.logs.partitioning import checked_key, partitions_of
from mycelia.logs.value_codec import array_header
from mycelia.logs.writer import APPEND_DEFAULTS
from mycelia.wire import Serializer

__all__ = ["ID_HEADER", "IdHeaders", "Outgoing", "entry_bodies"]

ID_HEADER: Final = "id"
"""Of a record that a flow appended: its id, the same if it is there again."""

_BODIES: Final = "~bodies"
"""Among what a sink keeps: how many there have been."""

_RECORDS_AT_ONCE: Final = 5000
_BYTES_AT_ONCE: Final = 512 * 1024
"""Of one batch. Whoever reads handles a batch at a time."""


Unfit = tuple[str, SinkRecord[Any], SinkRefused]
"""A result that cannot leave by an output, and why."""


class UnfitResults(FlowError):
    """Results that cannot leave: they are not what their log takes, too large for it, or of no type that can be written.

    Attributes:
        unfit: each with the name of its output.
        operator, key: of the first, for the log's line.
    """

    def __init__(self, unfit: Sequence[Unfit]) -> None:
        output, record, refused = unfit[0]
        more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
        super().__init__(
            f'{refused}{more}. Mend what makes it, or let such results become dead letters: on_error="dead-letter".'
        )
        self.unfit = list(unfit)
        self.operator = f'output "{output}"'
        self.key = record.key


def unfit_of(output: str, given: Given, leaves: Callable[[SinkRecord[Any]], object]) -> list[Unfit]:
    """Those of an output with which `leaves` raises."""
    found: list[Unfit] = []
    for record in map(SinkRecord, given.ids(), given.keys, given.times, given.values):
        try:
            leaves(record)
        except BaseException as exc:  # noqa: BLE001  users' encoders: whatever it is, the result cannot leave
            where = f'output "{output}", record {record.id}, key {repr_of_value(record.key)}, event time {record.time_ms} ms'
            found.append((output, record, SinkRefused(f"{where}: {describe(exc)}", record.id)))
    return found


class Outgoing:
    """Makes messages of what one partition of a flow gives.

    Args:
        producer: the producer of the batches; no other partition's, and no earlier flow's.
        partition: where records without a key go.
        sequences: the next sequence of each partition of a log, `log/partition`; counted on.
        exchange: that of the service's events.
        serializer: what events are written with.
    """

    def __init__(
        self,
        outputs: Iterable[FlowOutput],
        producer: str,
        partition: int,
        sequences: dict[str, int],
        exchange: str,
        serializer: Serializer,
    ) -> None:
        self._outputs = list(outputs)
        self._producer = producer
        self._partition = partition
        self.sequences = sequences
        self._exchange = exchange
        self._serializer = serializer

    def messages(self, given: Sequence[Given], now_ms: int) -> list[Message]:
        """All messages, in the order of the records of each output.

        Raises:
            UnserializableValueError, ContractError: a record is not what its log takes, or no event can carry it.
        """
        made: list[Message] = []
        for output in self._outputs:
            its = [one for one in given if one.output == output.name]
            values = list(chain.from_iterable(one.values for one in its))
            if output.sink is None and not values:
                continue
            keys = chain.from_iterable(one.keys for one in its)
            times = chain.from_iterable(one.times for one in its)
            ids = chain.from_iterable(one.ids() for one in its)
            if output.sink is not None:
                records = list(map(SinkRecord, ids, keys, times, values))
                made += self._for_sink(output.name, output.sink, records, now_ms)
            elif output.log is not None:
                headers = IdHeaders(its[0].id_prefix, [n for one in its for n in one.numbers])
                made += self._appended(output.log, headers, list(keys), list(times), values)
            else:
                assert output.event_type is not None
                made += self._events(output.event_type, list(ids), values, now_ms // 1000)
        return made

    def unfit(self, given: Sequence[Given], now_ms: int) -> list[Unfit]:
        """Those that cannot leave, each tried for itself. `sequences` have to be put back after it."""
        return [
            one
            for output in self._outputs
            for some in given
            if some.output == output.name
            for one in unfit_of(output.name, some, partial(self._leaves, output, now_ms))
        ]

    def _leaves(self, output: FlowOutput, now_ms: int, record: SinkRecord[Any]) -> None:
        if output.sink is not None:
            self._for_sink(output.name, output.sink, [record], now_ms)
        elif output.log is not None:
            ids = IdHeaders(record.id, [0])  # one as long, or by a digit longer
            self._appended(output.log, ids, [record.key], [record.time_ms], [record.value])
        else:
            self._events(output.event_type or "", [record.id], [record.value], 0)

    def is_due(self, now_ms: int) -> bool:
        """Whether there is something to leave though nothing was given."""
        return any(
            output.sink.is_due(self._kept(output.name), now_ms)
            for output in self._outputs
            if output.sink is not None
        )

    # --- to a sink -------------------------------------------------------------------------------

    def _kept(self, output: str) -> dict[str, int]:
        """What the sink of an output keeps: it is among the sequences, under its name."""
        prefix = f"~{output}/"
        return {
            name.removeprefix(prefix): number
            for name, number in self.sequences.items()
            if name.startswith(prefix)
        }

    def _for_sink(
        self, name: str, sink: FlowSink[Any], records: list[SinkRecord[Any]], now_ms: int
    ) -> list[Message]:
        kept = self._kept(name)
        if not records and not sink.is_due(kept, now_ms):
            return []
        number = kept.pop(_BODIES, 0)
        bodies = sink.pack(records, kept, now_ms, self._producer)
        kept[_BODIES] = number + len(bodies)
        for gone in self._kept(name).keys() - kept.keys():
            del self.sequences[f"~{name}/{gone}"]
        self.sequences.update({f"~{name}/{one}": value for one, value in kept.items()})
        return [sink_message(name, number + at, body) for at, body in enumerate(bodies)]

    # --- to a log --------------------------------------------------------------------------------

    def _appended(
        self, log: Log[Any], ids: IdHeaders, keys: list[Any], times: list[int], values: list[Any]
    ) -> list[Message]:
        shape = log.shape
        of_log: list[RecordKey] = (
            shape.keys_of(values) if shape.has_key else list(map(_key_of_stream, keys))
        )
        at: list[int | None] = shape.times_of(values) if shape.has_time else list(times)
        own = self._partition % log.partitions
        partitions = partitions_of(of_log, log.partitions, lambda: own)
        if partitions.count(partitions[0]) == len(partitions):  # copies of all columns less
            return self._batches(log, partitions[0], ids, of_log, at, values)
        chosen: dict[int, list[int]] = {}
        for index, partition in enumerate(partitions):
            chosen.setdefault(partition, []).append(index)
        made: list[Message] = []
        for partition, indexes in chosen.items():
            columns = [of_log[n] for n in indexes], [at[n] for n in indexes]
            its = [values[n] for n in indexes]
            made += self._batches(log, partition, ids.only(indexes), *columns, its)
        return made

    def _batches(
        self,
        log: Log[Any],
        partition: int,
        ids: IdHeaders,
        keys: list[RecordKey],
        times: list[int | None],
        values: list[Any],
    ) -> list[Message]:
        return [
            self._batch(log, partition, count, body)
            for count, body in entry_bodies(log, keys, times, ids, values)
        ]

    def _batch(self, log: Log[Any], partition: int, count: int, body: bytes) -> Message:
        place = f"{log.name}/{partition}"
        sequence = self.sequences.get(place, 0)
        self.sequences[place] = sequence + 1
        method: str | None = None
        if log.compressor is not None and len(body) >= APPEND_DEFAULTS.compress_from_bytes:
            with_method, compress = log.compressor
            packed = compress(body)
            if len(packed) < len(body):
                body, method = packed, with_method
        properties = entry_properties(count, self._producer, sequence, method)
        return Message(log.name, str(partition), body, properties, mandatory=True)

    # --- as events -------------------------------------------------------------------------------

    def _events(
        self, event_type: str, ids: list[str], values: list[Any], now_s: int
    ) -> list[Message]:
        serializer = self._serializer
        return [
            Message(
                self._exchange,
                event_type,
                serializer.encode(value),
                Properties(
                    content_type=serializer.content_type,
                    content_encoding=serializer.content_encoding,
                    headers={},
                    delivery_mode=2,
                    message_id=one,
                    timestamp=now_s,
                ),
            )
            for one, value in zip(ids, values, strict=True)
        ]


class IdHeaders:
    """The headers of records that have nothing but an id, `prefix` and the record's number, as a column of a batch.

    Written without a dictionary and a string for each: a third of what a record costs that goes from log to log.
    """

    __slots__ = ("_numbers", "_prefix")

    def __init__(self, prefix: str, numbers: Sequence[int]) -> None:
        self._prefix = prefix
        self._numbers = numbers

    def only(self, indexes: Sequence[int]) -> IdHeaders:
        """Those of some of the records."""
        return IdHeaders(self._prefix, [self._numbers[index] for index in indexes])

    def __getitem__(self, span: slice) -> IdHeaders:
        return IdHeaders(self._prefix, self._numbers[span])

    def encoded(self) -> bytes:
        """As `msgspec.msgpack.encode([{"id": …}, …])`."""
        parts = [array_header(len(self._numbers))]
        prefix = self._prefix.encode()
        for digits, numbers in groupby(map(str, self._numbers), len):
            # One beginning for all of as many digits; latin-1 is bytes as text, which can be joined in C.
            begin = _ID_MAP + _text_header(len(prefix) + digits) + prefix
            between = begin.decode("latin-1")
            parts += begin, between.join(numbers).encode("latin-1")
        return b"".join(parts)


_ID_MAP: Final = b"\x81" + msgspec.msgpack.encode(ID_HEADER)
"""How a map of one entry begins, up to its value."""


def _text_header(size: int) -> bytes:
    """How msgpack begins a text of `size` bytes."""
    if size < 32:
        return bytes((0xA0 | size,))
    if size < 0x100:
        return bytes((0xD9, size))
    if size < 0x10000:
        return b"\xda" + size.to_bytes(2, "big")
    return b"\xdb" + size.to_bytes(4, "big")


def entry_bodies(
    log: Log[Any],
    keys: Sequence[RecordKey],
    times: Sequence[int | None],
    headers: IdHeaders | None,
    values: Sequence[Any],
) -> list[tuple[int, bytes]]:
    """The bodies of batches of a log, none larger than a reader likes, with the number of records of each.

    Raises:
        UnserializableValueError: a record is not what the log takes, or too large for it.
    """
    made: list[tuple[int, bytes]] = []
    spans = [
        slice(begin, min(begin + _RECORDS_AT_ONCE, len(values)))
        for begin in range(0, len(values), _RECORDS_AT_ONCE)
    ][::-1]
    while spans:
        span = spans.pop()
        own = None if headers is None else headers[span].encoded()
        body = encode_columns(keys[span], times[span], own, [log.shape.codec.encode(values[span])])
        count = span.stop - span.start
        if len(body) > _BYTES_AT_ONCE and count > 1:
            middle = span.start + count // 2
            spans += [slice(middle, span.stop), slice(span.start, middle)]
            continue
        if len(body) > MAX_ENTRY_BYTES // 2:
            raise UnserializableValueError(
                f'log "{log.name}": a record of {len(body)} bytes, and one may have {MAX_ENTRY_BYTES // 2}.'
            )
        made.append((count, body))
    return made


def _key_of_stream(key: Any) -> RecordKey:
    """A stream's key as a log's, where it can be one."""
    try:
        return checked_key(key)
    except ContractError:
        return None
