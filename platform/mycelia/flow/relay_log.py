"""Between two stages of a flow: a log of its own, in which records are split anew, with word of how far event time has come. Pure.

Its records carry key and value as state has them (`state_codec`), because what passes from step to step is no log's type. Where they are the
records of a log as they were read, they are written as that log writes them, in a sixth of the time, and the key is asked for again behind it. Each entry says in
its headers which partition of the stage before wrote it; the last entry of a commit, how far event time had come there:

| header | is |
|---|---|
| `x-flow-from` | the writer's partition, a whole number |
| `x-flow-watermark-ms` | that all before this time has been written, milliseconds since 1970 |
| `x-flow-silence` | "idle" where all that the writer reads is silent, "empty" where nothing has ever come: it is not waited for |

An entry without records says the last two alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from mycelia.amqp import Link, Message
from mycelia.flow.column_batch import BEGINNING_OF_TIME, END_OF_TIME
from mycelia.flow.engine import Given
from mycelia.flow.equal_keys import plain_key
from mycelia.flow.outgoing import Unfit, entry_bodies, unfit_of
from mycelia.flow.relay_reader import RelayReader
from mycelia.flow.sinks.sink import SinkRecord
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.flow.watermarks import Silence
from mycelia.logs import Log, LogEntry
from mycelia.logs.batch_format import encode_columns, entry_properties
from mycelia.logs.partitioning import key_bytes
from mycelia.logs.position import StartAt
from mycelia.logs.reader import DEFAULT_BUFFER_BYTES
from mycelia.logs.value_codec import Columns, ValueCodec

__all__ = [
    "GIVES",
    "KeyedValue",
    "Mark",
    "Relay",
    "RelayLog",
    "RelayWord",
    "Relaying",
    "relay_partition",
    "word_of",
]

FROM_HEADER: Final = "x-flow-from"
WATERMARK_HEADER: Final = "x-flow-watermark-ms"
SILENCE_HEADER: Final = "x-flow-silence"

GIVES: Final = "~~gives/"
"""Among the sequences of a partition, before the name of each log between stages that it writes to: so that whoever copies its state knows them."""

TELL_EVERY_MS: Final = 200
"""Between two words to a partition to which no records go. Each is a message: of four partitions to eight, 160 a second."""


class KeyedValue(NamedTuple):
    """A record of a log between stages, with its key."""

    key: Any
    value: Any


class _RelayCodec(ValueCodec[Any]):
    """Keys and values, each pair as state has it; or the records of a log.

    Args:
        own: that log's codec, if they are written so. Pairs are read all the same: they may be from before the flow was changed.
    """

    def __init__(self, what: str, own: ValueCodec[Any] | None) -> None:
        super().__init__(bytes, what)
        self._own = own

    def encode(self, values: Sequence[Any]) -> bytes:
        if self._own is not None:
            return self._own.encode(values)
        return super().encode([encode_state([pair.key, pair.value]) for pair in values])

    def decode_columns(self, body: bytes) -> Columns:
        if self._own is not None:
            with suppress(msgspec.ValidationError):
                return self._own.decode_columns(body)
        keys, times, headers, values = super().decode_columns(body)
        return keys, times, headers, [KeyedValue(*decode_state(one)) for one in values]

    def decode_value(self, body: bytes) -> Any:
        return KeyedValue(*decode_state(super().decode_value(body)))

    def decode_json(self, body: bytes) -> Any:
        raise msgspec.ValidationError("a flow's own log has no JSON")


class RelayLog(Log[Any]):
    """A log between two stages. Its values are `KeyedValue`, or the records of a log.

    Args:
        own: the codec of the log whose records it has.
    """

    def __init__(
        self,
        name: str,
        partitions: int,
        retain: float | None,
        retain_bytes: int | None,
        own: ValueCodec[Any] | None = None,
    ) -> None:
        super().__init__(name, partitions=partitions, retain=retain, retain_bytes=retain_bytes)
        self.shape.codec = _RelayCodec(f'log "{name}"', own)

    def reader(
        self,
        link: Link,
        partition: int,
        start: StartAt = "first",
        *,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> RelayReader:
        """As of any log. What is gone of it is told with what there is to do for a flow."""
        return RelayReader(
            link, self.layout, self.shape, partition, start, buffer_bytes=buffer_bytes
        )


Mark = tuple[int, Silence]
"""How far event time has come at a cut, and whether all that comes there is silent."""


class Relay:
    """A cut of a flow, and what is between its two sides.

    Attributes:
        name: of the `key_by()` step: an output of the stage before it, a source of the one behind.
        writers: partitions of the stage before it.
        key_of: gives a record's key, where the log has records without.
    """

    __slots__ = ("key_of", "log", "name", "writers")

    def __init__(
        self, name: str, log: RelayLog, writers: int, key_of: Callable[[Any], Any] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self.writers = writers
        self.key_of = key_of

    def columns(self, values: list[Any]) -> tuple[list[Any], list[Any]]:
        """Keys and values of what the log has."""
        if self.key_of is None or KeyedValue in set(map(type, values)):
            pairs = [
                one if type(one) is KeyedValue else KeyedValue(self._key(one), one)
                for one in values
            ]
            return [pair.key for pair in pairs], [pair.value for pair in pairs]
        return list(map(self.key_of, values)), values

    def _key(self, value: Any) -> Any:
        assert self.key_of is not None  # else the codec gives pairs
        return self.key_of(value)


class RelayWord(NamedTuple):
    """What an entry of a relay's log says beside its records."""

    writer: int
    watermark: int | None
    """None: it says nothing of event time."""
    silence: Silence


def word_of(entry: LogEntry[Any], writers: int) -> RelayWord | None:
    """What an entry says; None if it is not of the flow."""
    headers = entry.delivery.properties.headers or {}
    writer, watermark = headers.get(FROM_HEADER), headers.get(WATERMARK_HEADER)
    if type(writer) is not int or not 0 <= writer < writers:
        return None
    if type(watermark) is not int:
        return RelayWord(writer, None, "")
    silence = headers.get(SILENCE_HEADER)
    return RelayWord(writer, watermark, silence if silence in ("idle", "empty") else "")


def relay_partition(key: Any, partitions: int) -> int:
    """The partition of a key: of text, bytes and whole numbers that of any log; keys that are equal in Python are in one."""
    return crc32(_key_bytes(key)) % partitions


def _key_bytes(key: Any) -> bytes:
    plain = plain_key(key)
    if isinstance(plain, str | bytes) or (type(plain) is int and -(2**63) <= plain < 2**64):
        return key_bytes(plain)
    return encode_state(plain)


def _is_written(relay: Relay, record: SinkRecord[Any]) -> None:
    relay_partition(record.key, relay.log.partitions)
    value = record.value if relay.key_of is not None else KeyedValue(record.key, record.value)
    entry_bodies(relay.log, [None], [record.time_ms], None, [value])


class Relaying:
    """Makes messages of what one partition of a stage gives to the stages behind it.

    Args:
        producer: the producer of the batches; no other partition's, and no earlier flow's.
        partition: the stage's.
        sequences: the next sequence of each partition of a log, `log/partition`; counted on.
    """

    def __init__(
        self, relays: Iterable[Relay], producer: str, partition: int, sequences: dict[str, int]
    ) -> None:
        self._relays = list(relays)
        self._producer = producer
        self._partition = partition
        self._sequences = sequences
        for relay in self._relays:
            sequences[f"{GIVES}{relay.log.name}"] = 0
        self._told: dict[tuple[str, int], tuple[int, Silence, int]] = {}
        """Of each partition that is written to: the mark, and when it was told."""

    def has_word(self, marks: Mapping[str, Mark], now_ms: int) -> bool:
        """Whether there is something to tell of event time that should not wait for records."""
        return any(
            self._is_due(relay.name, partition, marks[relay.name], now_ms)
            for relay in self._relays
            for partition in range(relay.log.partitions)
        )

    def messages(
        self, given: Iterable[Given], marks: Mapping[str, Mark], now_ms: int
    ) -> list[Message]:
        """Batches, in the order of the records of each cut, and what is to be told.

        Args:
            marks: of each cut, how far event time has come there, and whether all is silent. Of all that has been given.

        Raises:
            StateIncompatible: a key or a value is of a type that is not kept.
        """
        by_output: dict[str, list[Given]] = {}
        for one in given:
            by_output.setdefault(one.output, []).append(one)
        made: list[Message] = []
        told: dict[tuple[str, int], tuple[int, Silence, int]] = {}
        for relay in self._relays:
            mark = marks[relay.name]
            columns = self._split(relay, by_output.get(relay.name, ()))
            for partition in range(relay.log.partitions):
                keys, times, values = columns.get(partition, ([], [], []))
                if values:
                    bodies = entry_bodies(relay.log, keys, times, None, values)
                elif self._is_due(relay.name, partition, mark, now_ms):
                    bodies = [(0, encode_columns([], [], None, []))]
                else:
                    continue
                for number, (count, body) in enumerate(bodies, 1):
                    says = mark if number == len(bodies) and mark[0] > BEGINNING_OF_TIME else None
                    if count == 0:
                        says = mark
                    made.append(self._entry(relay.log, partition, count, body, says))
                told[relay.name, partition] = (*mark, now_ms)
        self._told.update(told)
        return made

    def unfit(self, given: Iterable[Given]) -> list[Unfit]:
        """Those that cannot be written to the log of their cut, each tried for itself."""
        by_name = {relay.name: relay for relay in self._relays}
        return [
            one
            for some in given
            if some.output in by_name
            for one in unfit_of(some.output, some, partial(_is_written, by_name[some.output]))
        ]

    def _is_due(self, relay: str, partition: int, mark: Mark, now_ms: int) -> bool:
        told = self._told.get((relay, partition))
        if told is None:
            return mark != (BEGINNING_OF_TIME, "")
        *before, at_ms = told
        if mark == tuple(before):
            return False
        return mark[0] >= END_OF_TIME or not 0 <= now_ms - at_ms < TELL_EVERY_MS

    def _split(
        self, relay: Relay, given: Iterable[Given]
    ) -> dict[int, tuple[list[Any], list[int], list[Any]]]:
        """The records of a cut by the partition that they go to: keys for people, times, and pairs of key and value."""
        partitions = relay.log.partitions
        chosen: dict[int, tuple[list[Any], list[int], list[Any]]] = {}
        known: dict[Any, tuple[list[Any], list[int], list[Any]]] = {}
        for one in given:
            for key, time, value in zip(one.keys, one.times, one.values, strict=True):
                columns = known.get(key)
                if columns is None:
                    to = relay_partition(key, partitions)
                    columns = known[key] = chosen.setdefault(to, ([], [], []))
                keys, times, values = columns
                keys.append(key if type(key) in (str, bytes) else None)
                times.append(time)
                values.append(value if relay.key_of is not None else KeyedValue(key, value))
        return chosen

    def _entry(
        self,
        log: RelayLog,
        partition: int,
        count: int,
        body: bytes,
        says: Mark | None,
    ) -> Message:
        place = f"{log.name}/{partition}"
        sequence = self._sequences.get(place, 0)
        self._sequences[place] = sequence + 1
        properties = entry_properties(count, self._producer, sequence)
        assert properties.headers is not None
        properties.headers[FROM_HEADER] = self._partition
        if says is not None:
            properties.headers[WATERMARK_HEADER], silence = says
            if silence:
                properties.headers[SILENCE_HEADER] = silence
        return Message(log.name, str(partition), body, properties, mandatory=True)
