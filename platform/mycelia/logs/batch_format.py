"""An entry of a log: a batch of records as one message, or a plain message as a batch of one. Pure.

The format, for whoever writes or reads it in another language: contracts/logs/README.md. In short, of a batch:

    content_type  application/x-mycelia-records
    headers       x-log-format 1 · x-log-count n · x-log-producer · x-log-sequence · compression (if it is)
    body          msgpack [keys | nil, times | nil, headers | nil, values], each an array of n

Columns, not rows: one call decodes them into typed values, what nobody has costs a byte, and a writer puts values behind each
other as they come. Measured: docs/decisions/0017.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from mycelia.amqp import STREAM_OFFSET, Properties
from mycelia.errors import UndecodableMessage
from mycelia.logs.record import FaultyRecord, Record, RecordHeaders, RecordKey
from mycelia.logs.value_codec import ValueCodec, array_header
from mycelia.wire import COMPRESSION_HEADER, OFF_LOOP_BYTES
from mycelia.wire.bounds import bounds_for, check_json
from mycelia.wire.compression import decompress
from mycelia.wire.msgpack_codec import decode_msgpack

__all__ = [
    "COUNT_HEADER",
    "FORMAT_HEADER",
    "FORMAT_VERSION",
    "INDEX_HEADER",
    "KEY_HEADER",
    "MAX_ENTRY_BYTES",
    "OFFSET_HEADER",
    "PARTITION_HEADER",
    "PRODUCER_HEADER",
    "RECORDS_CONTENT_TYPE",
    "SEQUENCE_HEADER",
    "TIME_HEADER",
    "DecodedEntry",
    "decode_entry",
    "decode_entry_if_small",
    "encode_columns",
    "entry_properties",
    "producer_of",
]

T = TypeVar("T")

RECORDS_CONTENT_TYPE: Final = "application/x-mycelia-records"
FORMAT_HEADER: Final = "x-log-format"
FORMAT_VERSION: Final = 1
COUNT_HEADER: Final = "x-log-count"
PRODUCER_HEADER: Final = "x-log-producer"
SEQUENCE_HEADER: Final = "x-log-sequence"
KEY_HEADER: Final = "x-log-key"
"""Of a plain message: its record's key, text or a whole number."""
TIME_HEADER: Final = "x-log-time-ms"
"""Of a plain message: its record's time. Without it the property `timestamp` counts, which is in seconds."""
PARTITION_HEADER: Final = "x-log-partition"
OFFSET_HEADER: Final = "x-log-offset"
INDEX_HEADER: Final = "x-log-index"
"""Of a dead letter: where in its log it was; of a record alone, its place in the entry."""

MAX_ENTRY_BYTES: Final = 16 * 1024 * 1024
"""Of one entry, decompressed. Writers close a batch long before."""

_UNCHECKED_BYTES: Final = 1024 * 1024
"""A body up to this size cannot become more than some 60 MB of objects; what a larger one holds is counted first."""

_JSON_TYPES: Final = ("application/json",)
_MSGPACK_TYPES: Final = ("application/x-msgpack", "application/msgpack", "application/vnd.msgpack")
_OURS: Final = frozenset(
    {
        FORMAT_HEADER,
        COUNT_HEADER,
        PRODUCER_HEADER,
        SEQUENCE_HEADER,
        KEY_HEADER,
        TIME_HEADER,
        PARTITION_HEADER,
        OFFSET_HEADER,
        INDEX_HEADER,
        COMPRESSION_HEADER,
        STREAM_OFFSET,
    }
)
_KEY_TYPES: Final = {str, bytes, int, type(None)}

_encode = msgspec.msgpack.Encoder().encode


# --- writing ---------------------------------------------------------------------------------------


def encode_columns(
    keys: Sequence[RecordKey],
    times: Sequence[int | None],
    headers: Sequence[RecordHeaders] | bytes | None,
    values: Sequence[bytes],
) -> bytes:
    """The body of a batch, not compressed.

    Args:
        headers: `None`: no record has any; bytes: the column, as msgpack.
        values: one msgpack value behind the other, of as many records as there are keys, in any number of pieces.
    """
    has_keys = any(key is not None for key in keys)
    has_times = any(time is not None for time in times)
    return b"".join(
        (
            b"\x94",
            _encode(keys) if has_keys else b"\xc0",
            _encode(times) if has_times else b"\xc0",
            b"\xc0" if headers is None else headers if type(headers) is bytes else _encode(headers),
            array_header(len(keys)),
            *values,
        )
    )


def entry_properties(
    count: int,
    producer: str,
    sequence: int,
    compression: str | None = None,
    message_id: str | None = None,
) -> Properties:
    """The properties of a batch's message.

    Args:
        message_id: one that no other message has: sequences are of a partition, and begin anew in each.
        compression: the content type of the method that its body is compressed with.
    """
    headers: dict[str, Any] = {
        FORMAT_HEADER: FORMAT_VERSION,
        COUNT_HEADER: count,
        PRODUCER_HEADER: producer,
        SEQUENCE_HEADER: sequence,
    }
    if compression is not None:
        headers[COMPRESSION_HEADER] = compression
    return Properties(
        content_type=RECORDS_CONTENT_TYPE,
        content_encoding="binary",
        headers=headers,
        delivery_mode=2,
        message_id=message_id,
    )


# --- reading ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class DecodedEntry(Generic[T]):
    """What an entry holds, in columns: `keys[i]`, `times[i]`, `headers[i]` and `values[i]` are one record's."""

    keys: list[RecordKey] = field(default_factory=list)
    times: list[int | None] = field(default_factory=list)
    headers: list[RecordHeaders] = field(default_factory=list)
    values: list[T] = field(default_factory=list)
    indexes: Sequence[int] = ()
    """The place of each of them in the entry."""
    faults: list[FaultyRecord] = field(default_factory=list)

    @property
    def records(self) -> list[Record[T]]:
        """The same as records; made anew each time, 70 ns each."""
        return list(map(Record, self.keys, self.times, self.headers, self.values))


def producer_of(headers: Mapping[str, Any] | None) -> tuple[str, int] | None:
    """By whom an entry was written, and as which of theirs; `None` if it does not say, or not in the form of the contract."""
    if headers is None:
        return None
    producer, sequence = headers.get(PRODUCER_HEADER), headers.get(SEQUENCE_HEADER)
    is_told = type(producer) is str and producer and type(sequence) is int and sequence >= 0
    return (producer, sequence) if is_told else None  # type: ignore[return-value]


def decode_entry(
    properties: Properties,
    body: bytes,
    codec: ValueCodec[T],
    key_of: Callable[[Any], Any] | None = None,
    time_of: Callable[[Any], int | None] | None = None,
    max_bytes: int = MAX_ENTRY_BYTES,
) -> DecodedEntry[T]:
    """The records of an entry, and what of it could not be read. Never raises for what a message holds.

    Args:
        key_of: of a plain message that names no key: the key of its value. May raise.
        time_of: of a plain message that names no time: the time of its value. May raise.
        max_bytes: a larger body is not read.
    """
    try:
        plain = _plain_body(properties, body, max_bytes)
    except UndecodableMessage as exc:
        return DecodedEntry(faults=[FaultyRecord(None, str(exc), body=body)])
    return _decode_body(properties, body, plain, codec, key_of, time_of)


def decode_entry_if_small(
    properties: Properties,
    body: bytes,
    codec: ValueCodec[T],
    key_of: Callable[[Any], Any] | None = None,
    time_of: Callable[[Any], int | None] | None = None,
) -> DecodedEntry[T] | None:
    """`decode_entry()`; `None` where that may take too long for the event loop, more than some milliseconds."""
    if len(body) > OFF_LOOP_BYTES:
        return None
    try:
        plain = _plain_body(properties, body, 2 * OFF_LOOP_BYTES)
    except UndecodableMessage:
        return None  # too much, or nothing that can be read: found out elsewhere
    return _decode_body(properties, body, plain, codec, key_of, time_of)


def _decode_body(
    properties: Properties,
    body: bytes,
    plain: bytes,
    codec: ValueCodec[T],
    key_of: Callable[[Any], Any] | None,
    time_of: Callable[[Any], int | None] | None,
) -> DecodedEntry[T]:
    content_type = _plain_type(properties.content_type)
    try:
        if content_type == RECORDS_CONTENT_TYPE:
            return _decode_batch(properties.headers or {}, plain, codec)
        return _decode_plain(content_type, properties, plain, codec, key_of, time_of)
    except UndecodableMessage as exc:
        return DecodedEntry(faults=[FaultyRecord(None, str(exc), body=body)])


def _plain_type(content_type: str | None) -> str:
    if content_type is None:
        return ""
    if content_type == RECORDS_CONTENT_TYPE:
        return content_type
    return content_type.partition(";")[0].strip().lower()


def _plain_body(properties: Properties, body: bytes, max_bytes: int) -> bytes:
    headers = properties.headers
    if headers is not None and COMPRESSION_HEADER in headers:
        return decompress(body, headers, max_bytes)
    if len(body) > max_bytes:
        raise UndecodableMessage(
            f"the entry has {len(body)} bytes, more than the limit of {max_bytes}."
        )
    return body


def _decode_batch(headers: Mapping[str, Any], body: bytes, codec: ValueCodec[T]) -> DecodedEntry[T]:
    version = headers.get(FORMAT_HEADER)
    if version != FORMAT_VERSION:
        raise UndecodableMessage(
            f"header {FORMAT_HEADER} is {version!r:.60}; version {FORMAT_VERSION} can be read here. "
            "Whoever reads must be as new as whoever writes."
        )
    _check_weight(body)
    try:
        keys, times, own, values = codec.decode_columns(body)
    except msgspec.ValidationError as exc:
        return _decode_one_by_one(headers, body, codec, exc)
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError) as exc:
        raise _malformed(body, exc) from exc
    count = _check_form(headers, keys, times, own, values)
    nothing: list[Any] = [None] * count
    return DecodedEntry(
        keys or nothing, times or [*nothing], own or [*nothing], values, range(count)
    )


_raw_columns = msgspec.msgpack.Decoder(
    tuple[
        list[Any] | None,
        list[int | None] | None,
        list[dict[str, Any] | None] | None,
        list[msgspec.Raw],
    ]
)


def _decode_one_by_one(
    headers: Mapping[str, Any], body: bytes, codec: ValueCodec[T], error: Exception
) -> DecodedEntry[T]:
    """A batch in which something is of another type than wanted: its good records, and the others as faults."""
    try:
        keys, times, own, raw = _raw_columns.decode(body)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
        raise _malformed(body, exc) from exc
    count = _check_form(headers, keys, times, own, raw)
    nothing = [None] * count
    decoded: DecodedEntry[T] = DecodedEntry()
    indexes: list[int] = []
    columns = zip(keys or nothing, times or nothing, own or nothing, raw, strict=True)
    for index, (key, time, of_record, value) in enumerate(columns):
        try:
            read = codec.decode_value(value)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
            decoded.faults.append(
                FaultyRecord(
                    index, f"value {index}: {exc}", key, time, bytes(value), headers=of_record
                )
            )
        else:
            decoded.keys.append(key)
            decoded.times.append(time)
            decoded.headers.append(of_record)
            decoded.values.append(read)
            indexes.append(index)
    if not decoded.faults:  # not the values, then: the decoders disagree, which would be ours
        raise _malformed(body, error) from error
    decoded.indexes = indexes
    return decoded


def _check_form(
    headers: Mapping[str, Any],
    keys: list[Any] | None,
    times: list[int | None] | None,
    own: list[RecordHeaders] | None,
    values: Sequence[Any],
) -> int:
    """How many records there are.

    Raises:
        UndecodableMessage: the columns or the count in the header do not fit each other, or a key is none.
    """
    count = len(values)
    announced = headers.get(COUNT_HEADER)
    if announced is not None and announced != count:
        raise UndecodableMessage(
            f"header {COUNT_HEADER} says {announced!r:.60} records, the body holds {count} values."
        )
    for name, column in (("keys", keys), ("times", times), ("headers", own)):
        if column is not None and len(column) != count:
            raise UndecodableMessage(
                f"the body holds {count} values, but {len(column)} {name}. A column has one for each record, or is nil."
            )
    if keys is not None and not _KEY_TYPES.issuperset(map(type, keys)):
        at = next(at for at, key in enumerate(keys) if type(key) not in _KEY_TYPES)
        raise UndecodableMessage(
            f"key {at} is {type(keys[at]).__name__}; a key is text, bytes, a whole number or nil."
        )
    return count


_AT_BYTE = re.compile(r"\(byte (\d+)\)")


def _malformed(body: bytes, error: Exception) -> UndecodableMessage:
    """The error for a body of another form: where it breaks, and how."""
    reason = str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    # msgspec names the byte or the path itself, except where the bytes end too soon.
    where = "" if _AT_BYTE.search(reason) or "`$" in reason else f" (byte {len(body)})"
    return UndecodableMessage(
        f"a batch of {len(body)} bytes is not [keys, times, headers, values] in msgpack: {reason}{where}."
    )


def _check_weight(body: bytes) -> None:
    """Refuse a large body that would become far more objects than bytes.

    Raises:
        UndecodableMessage: it would.
    """
    if len(body) > _UNCHECKED_BYTES:
        decode_msgpack(body, bounds_for(MAX_ENTRY_BYTES))


def _decode_plain(
    content_type: str,
    properties: Properties,
    body: bytes,
    codec: ValueCodec[T],
    key_of: Callable[[Any], Any] | None,
    time_of: Callable[[Any], int | None] | None,
) -> DecodedEntry[T]:
    """A plain message: a batch of one."""
    headers = properties.headers or {}
    try:
        if content_type in _JSON_TYPES:
            check_json(body, bounds_for(MAX_ENTRY_BYTES))
            value = codec.decode_json(body)
        elif content_type in _MSGPACK_TYPES:
            _check_weight(body)
            value = codec.decode_value(body)
        else:
            raise UndecodableMessage(
                f'content type "{(content_type or "(none)"):.60}" is none of a log: '
                f"{RECORDS_CONTENT_TYPE}, application/json, application/x-msgpack."
            )
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise UndecodableMessage(
            f"a plain message of {len(body)} bytes, {content_type}: {reason}."
        ) from exc
    key, time = headers.get(KEY_HEADER), headers.get(TIME_HEADER)
    try:
        if key is None and key_of is not None:
            key = key_of(value)
        if time is None:
            stamp = properties.timestamp
            if time_of is not None:
                time = time_of(value)
            elif stamp is not None:
                time = stamp * 1000
    except Exception as exc:
        raise UndecodableMessage(
            f"a plain message of {len(body)} bytes: its key or time cannot be had from the value: "
            f"{type(exc).__name__}: {exc}. Name them in the headers {KEY_HEADER} and {TIME_HEADER}."
        ) from exc
    if type(key) not in _KEY_TYPES or type(time) not in (int, type(None)):
        raise UndecodableMessage(
            f"header {KEY_HEADER} is {key!r:.60}, {TIME_HEADER} is {time!r:.60}; "
            "expected text or a whole number, and whole milliseconds."
        )
    own = {name: header for name, header in headers.items() if name not in _OURS} or None
    return DecodedEntry([key], [time], [own], [value], (0,))
