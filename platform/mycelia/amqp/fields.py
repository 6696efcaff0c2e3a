"""AMQP 0-9-1 field tables and `basic` properties to bytes and back (§4.2.5, and RabbitMQ's errata of the types).

Pure, and on the hot path: once for each message each way, so the common cases (a short header table of text,
whole numbers and lists of text) are flat code. Measure before making it prettier.

Field types, read / written as:

    t bool        b B s u I i l   whole numbers (U, L: signed 16 and 64 bits)   written: `I` if it fits 32 bits, else `l`
    f d float     D Decimal      S text (bytes where it is not UTF-8)           written: `d`, `D`, `S`
    T datetime (UTC; the number of seconds where no datetime holds it)  A list  F dict  V None  x bytes

Whatever is read can be written: who has taken a message can always keep it, put it back or send it on. So what no value here
could be written from is read as text: seconds beyond 63 bits, and floats that are no number. What cannot be read at all
(nested more than 64 deep, an unknown type) is for `salvage.py`.

Whatever cannot be on the wire is refused before it gets there, with the name of the header or property: RabbitMQ would close the
channel over it, or, over a float that is no number, the whole connection.

Text that is not UTF-8 in a short string (a name, a routing key, a property) keeps its bytes as surrogate escapes, so that
it goes out again as it came in.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct
from struct import error as StructError
from typing import Any, Final, cast

from mycelia.amqp.model import Properties
from mycelia.errors import ProtocolError

__all__ = [
    "decode_properties",
    "decode_table",
    "encode_properties",
    "encode_short_string",
    "encode_table",
]

_U16 = Struct(">H").unpack_from
_U32 = Struct(">I").unpack_from
_U64 = Struct(">Q").unpack_from
_I8 = Struct(">b").unpack_from
_I16 = Struct(">h").unpack_from
_I32 = Struct(">i").unpack_from
_I64 = Struct(">q").unpack_from
_F32 = Struct(">f").unpack_from
_F64 = Struct(">d").unpack_from
_DECIMAL = Struct(">Bi").unpack_from

_PACK_U16 = Struct(">H").pack
_PACK_U32 = Struct(">I").pack
_PACK_U64 = Struct(">Q").pack
_PACK_TYPE_I32 = Struct(">ci").pack
_PACK_TYPE_I64 = Struct(">cq").pack
_PACK_TYPE_U32 = Struct(">cI").pack
_PACK_TYPE_U64 = Struct(">cQ").pack
_PACK_TYPE_F64 = Struct(">cd").pack
_PACK_TYPE_DECIMAL = Struct(">cBi").pack

_OCTETS: Final = tuple(bytes((n,)) for n in range(256))
_OCTET_OF: Final = dict(
    enumerate(_OCTETS)
)  # of a number from outside: a tuple would take -1 for 255
_TEXT_HEADS: Final = tuple(b"S" + n.to_bytes(4, "big") for n in range(1024))  # type and length
_MAX_NESTING: Final = 64
"""Tables and lists in one another. Arbitrary; it keeps hostile headers from exhausting the stack."""
_CACHE_SIZE: Final = 2048
"""Distinct short strings kept in encoded (and decoded) form. Arbitrary; enough for the names of a large service."""

# Both caches hold what repeats: header names, content types, exchange names. They are cleared when full, so a
# peer that sends ever new names costs time, not memory.
_encoded: dict[str, bytes] = {}
_decoded: dict[bytes, str] = {}

# What decoding broken bytes can raise: reading past the end, a bad number, a date out of range, nesting too deep.
_BROKEN: Final = (IndexError, StructError, ValueError, OverflowError, ArithmeticError)


# --- short strings -------------------------------------------------------------------------------


def encode_short_string(text: str) -> bytes:
    """`text` as a short string: one octet of length, then up to 255 octets of UTF-8.

    Raises:
        ProtocolError: longer than 255 octets.
    """
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raw = _encode_escaped(text)
    if len(raw) > 255:
        raise ProtocolError(
            f"{text[:60]!r}… is {len(raw)} bytes long; AMQP names and properties hold at most 255. Shorten it."
        )
    return _OCTETS[len(raw)] + raw


def _encode_escaped(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise ProtocolError(
            f"{text[:60]!r} holds characters that UTF-8 cannot carry: {exc}"
        ) from exc


def _encode_cached(text: str) -> bytes:
    if len(_encoded) >= _CACHE_SIZE:
        _encoded.clear()
    raw = _encoded[text] = encode_short_string(text)
    return raw


def _decode_cached(raw: bytes) -> str:
    if len(_decoded) >= _CACHE_SIZE:
        _decoded.clear()
    text = _decoded[raw] = raw.decode("utf-8", "surrogateescape")
    return text


# --- tables, out ---------------------------------------------------------------------------------


def encode_table(table: Mapping[str, Any]) -> bytes:
    """`table` as a field table, its length in four octets first.

    Raises:
        ProtocolError: a name is too long, or a value is of a type (or size) AMQP has no field for.
    """
    return _encode_table(table, 0)


def _encode_table(table: Mapping[str, Any], depth: int) -> bytes:
    parts: list[bytes] = []
    add = parts.append
    for name, value in table.items():
        key = _encoded.get(name)
        add(_encode_name(name) if key is None else key)
        kind = type(value)
        if kind is str:
            _add_text(add, value, name)
        elif kind is list and depth <= _MAX_NESTING:
            add(_encode_list(value, name, depth + 1))
        elif kind is int and 0x7FFFFFFF < value <= 0x7FFFFFFFFFFFFFFF:  # times in milliseconds
            add(_PACK_TYPE_I64(b"l", value))
        else:
            add(_encode_value(value, name, depth))
    body = b"".join(parts)
    return _PACK_U32(len(body)) + body


def _add_text(add: Callable[[bytes], None], text: str, name: str) -> None:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raw = _encode_header_text(text, name)
    size = len(raw)
    add(_TEXT_HEADS[size] if size < 1024 else _PACK_TYPE_U32(b"S", size))
    add(raw)


def _encode_list(items: Sequence[Any], name: str, depth: int) -> bytes:
    parts: list[bytes] = []
    add = parts.append
    for item in items:
        if type(item) is str:
            _add_text(add, item, name)
        else:
            add(_encode_value(item, name, depth))
    body = b"".join(parts)
    return _PACK_TYPE_U32(b"A", len(body)) + body


def _encode_header_text(text: str, name: str) -> bytes:
    try:
        return _encode_escaped(text)
    except ProtocolError as exc:
        raise ProtocolError(f"header {name!r}: {exc}") from exc


def _encode_name(name: str) -> bytes:
    if not isinstance(name, str):
        raise ProtocolError(f"header name {name!r} is a {type(name).__name__}; names are text.")
    try:
        return _encode_cached(name)
    except ProtocolError as exc:
        raise ProtocolError(f"header name {exc}") from exc


def _encode_value(value: Any, name: str, depth: int) -> bytes:
    if depth > _MAX_NESTING:
        raise ProtocolError(f"header {name!r} is nested more than {_MAX_NESTING} deep.")
    if isinstance(value, list | tuple):
        return _encode_list(value, name, depth + 1)
    if value is None:
        return b"V"
    if value is True:
        return b"t\x01"
    if value is False:
        return b"t\x00"
    if isinstance(value, int):
        if -0x80000000 <= value <= 0x7FFFFFFF:
            return _PACK_TYPE_I32(b"I", value)
        if -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
            return _PACK_TYPE_I64(b"l", value)
        raise ProtocolError(f"header {name!r}: {value} does not fit 64 bits. Send it as text.")
    if isinstance(value, str):  # of a subclass, for instance an enumeration
        raw = _encode_header_text(value, name)
        return _PACK_TYPE_U32(b"S", len(raw)) + raw
    if isinstance(value, Mapping):
        return b"F" + _encode_table(value, depth + 1)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ProtocolError(
                f"header {name!r}: {value} is not a number, and RabbitMQ closes the connection over it. "
                "Send text, or leave it out."
            )
        return _PACK_TYPE_F64(b"d", value)
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        return _PACK_TYPE_U32(b"x", len(raw)) + raw
    if isinstance(value, datetime):
        return _encode_datetime(value, name)
    if isinstance(value, Decimal):
        return _encode_decimal(value, name)
    raise ProtocolError(
        f"header {name!r}: AMQP has no field type for {type(value).__name__} ({value!r:.80}). "
        "Use text, numbers, bool, bytes, datetime, Decimal, None, lists or dicts."
    )


def _encode_datetime(value: datetime, name: str) -> bytes:
    seconds = calendar.timegm(
        value.utctimetuple()
    )  # a naive datetime is taken as UTC, as kombu does
    if seconds < 0:
        raise ProtocolError(f"header {name!r}: {value} is before 1970, which AMQP cannot say.")
    return _PACK_TYPE_U64(b"T", seconds)


def _encode_decimal(value: Decimal, name: str) -> bytes:
    if not value.is_finite():
        raise ProtocolError(f"header {name!r}: AMQP has no decimal for {value}.")
    exponent = int(value.as_tuple().exponent)
    places = max(0, -exponent)
    unscaled = int(value.scaleb(places))
    if places > 255 or not -0x80000000 <= unscaled <= 0x7FFFFFFF:
        raise ProtocolError(
            f"header {name!r}: {value} does not fit AMQP's decimal (32 bits). Send it as text."
        )
    return _PACK_TYPE_DECIMAL(b"D", places, unscaled)


# --- tables, in ----------------------------------------------------------------------------------


def decode_table(data: bytes, position: int = 0) -> tuple[dict[str, Any], int]:
    """The field table at `position` in `data`, and the position behind it.

    Raises:
        ProtocolError: the bytes are not a field table.
    """
    try:
        table, end = _decode_table(data, position, 0)
    except _BROKEN as exc:
        raise ProtocolError(f"broken field table at byte {position}: {exc}") from exc
    if end > len(data):
        raise ProtocolError(f"field table at byte {position} ends {end - len(data)} bytes too soon")
    return table, end


def _decode_table(data: bytes, position: int, depth: int) -> tuple[dict[str, Any], int]:
    (size,) = _U32(data, position)
    position += 4
    end = position + size
    table: dict[str, Any] = {}
    while position < end:
        start = position + 1
        position = start + data[position]
        raw = data[start:position]
        name = _decoded.get(raw)
        if name is None:
            name = _decode_cached(raw)
        kind = data[position]
        position += 1
        if kind == 83:  # S
            (size,) = _U32(data, position)
            start = position + 4
            position = start + size
            raw = data[start:position]
            try:
                table[name] = raw.decode()
            except UnicodeDecodeError:
                table[name] = raw
        elif kind == 65 and depth < _MAX_NESTING:  # A
            table[name], position = _decode_list(data, position, depth + 1)
        else:
            table[name], position = _decode_value(kind, data, position, depth)
    if position != end:
        raise ValueError(f"a value runs {position - end} bytes over the end of its table")
    return table, end


def _decode_list(data: bytes, position: int, depth: int) -> tuple[list[Any], int]:
    (size,) = _U32(data, position)
    position += 4
    end = position + size
    items: list[Any] = []
    while position < end:
        if data[position] == 83:  # S
            (size,) = _U32(data, position + 1)
            start = position + 5
            position = start + size
            raw = data[start:position]
            try:
                items.append(raw.decode())
            except UnicodeDecodeError:
                items.append(raw)
        else:
            item, position = _decode_value(data[position], data, position + 1, depth)
            items.append(item)
    if position != end:
        raise ValueError(f"a value runs {position - end} bytes over the end of its list")
    return items, end


def _decode_value(kind: int, data: bytes, position: int, depth: int) -> tuple[Any, int]:
    if kind == 83 or kind == 120:  # S, x
        (size,) = _U32(data, position)
        start = position + 4
        position = start + size
        raw = data[start:position]
        if kind == 120:
            return raw, position
        try:
            return raw.decode(), position
        except UnicodeDecodeError:
            return raw, position
    if kind == 73:  # I
        return _I32(data, position)[0], position + 4
    if kind == 108 or kind == 76:  # l, L: both signed (rabbitmq-server#1093)
        return _I64(data, position)[0], position + 8
    if kind == 65 or kind == 70:  # A, F
        if depth >= _MAX_NESTING:
            raise ValueError(f"nested more than {_MAX_NESTING} deep")
        if kind == 65:
            return _decode_list(data, position, depth + 1)
        return _decode_table(data, position, depth + 1)
    if kind == 116:  # t
        return data[position] != 0, position + 1
    if kind == 86:  # V
        return None, position
    if kind == 100:  # d
        return _number_or_text(_F64(data, position)[0]), position + 8
    if kind == 84:  # T
        return _decode_datetime(_U64(data, position)[0]), position + 8
    if kind == 98:  # b
        return _I8(data, position)[0], position + 1
    if kind == 66:  # B
        return data[position], position + 1
    if kind == 115 or kind == 85:  # s, U
        return _I16(data, position)[0], position + 2
    if kind == 117:  # u
        return _U16(data, position)[0], position + 2
    if kind == 105:  # i
        return _U32(data, position)[0], position + 4
    if kind == 102:  # f
        return _number_or_text(_F32(data, position)[0]), position + 4
    if kind == 68:  # D
        places, unscaled = _DECIMAL(data, position)
        return Decimal(unscaled).scaleb(-places), position + 5
    raise ValueError(f"unknown field type {bytes((kind,))!r}")


def _decode_datetime(seconds: int) -> datetime | int | str:
    # Some peers write milliseconds, which lies past the year 9999: a number is better than losing the message.
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds if seconds <= 0x7FFFFFFFFFFFFFFF else str(seconds)


def _number_or_text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# --- properties ----------------------------------------------------------------------------------


def encode_properties(properties: Properties, message_id: str | None = None) -> bytes:
    """Property flags and values, as they follow the body size in a content header.

    Args:
        message_id: sent where the properties carry none; the properties are not changed.

    Raises:
        ProtocolError: a value does not fit its AMQP type.
    """
    try:
        flags = 0
        parts = [b""]
        add = parts.append
        text = properties.content_type
        if text is not None:
            flags = 0x8000
            add(_encoded.get(text) or _encode_cached(text))
        text = properties.content_encoding
        if text is not None:
            flags |= 0x4000
            add(_encoded.get(text) or _encode_cached(text))
        headers = properties.headers
        if headers is not None:
            flags |= 0x2000
            add(_encode_table(headers, 0))
        number = properties.delivery_mode
        if number is not None:
            flags |= 0x1000
            add(_OCTET_OF[number])
        number = properties.priority
        if number is not None:
            flags |= 0x0800
            add(_OCTET_OF[number])
        text = properties.correlation_id
        if text is not None:
            flags |= 0x0400
            add(encode_short_string(text))
        text = properties.reply_to
        if text is not None:
            flags |= 0x0200
            add(_encoded.get(text) or _encode_cached(text))
        text = properties.expiration
        if text is not None:
            flags |= 0x0100
            add(encode_short_string(text))
        text = properties.message_id
        if text is None:
            text = message_id
        if text is not None:
            flags |= 0x0080
            add(encode_short_string(text))
        number = properties.timestamp
        if number is not None:
            flags |= 0x0040
            add(_PACK_U64(number))
        text = properties.type
        if text is not None:
            flags |= 0x0020
            add(_encoded.get(text) or _encode_cached(text))
        text = properties.user_id
        if text is not None:
            flags |= 0x0010
            add(_encoded.get(text) or _encode_cached(text))
        text = properties.app_id
        if text is not None:
            flags |= 0x0008
            add(_encoded.get(text) or _encode_cached(text))
        text = properties.cluster_id
        if text is not None:
            flags |= 0x0004
            add(_encoded.get(text) or _encode_cached(text))
        parts[0] = _PACK_U16(flags)
        return b"".join(parts)
    except (ProtocolError, StructError, LookupError, TypeError, AttributeError) as exc:
        raise _unwritable(properties, message_id, exc) from exc


_OCTET_PROPERTIES: Final = ("delivery_mode", "priority")
_TEXT_PROPERTIES: Final = tuple(
    name
    for name in Properties.__struct_fields__
    if name not in ("headers", "timestamp", *_OCTET_PROPERTIES)
)


def _unwritable(properties: Properties, message_id: str | None, error: Exception) -> ProtocolError:
    """Which property it was. The hot path only knows that one was wrong."""
    headers = cast(object, properties.headers)
    if headers is not None and not isinstance(headers, Mapping):
        return ProtocolError(f"property headers: {headers!r:.80} is not a dict")
    for name in _OCTET_PROPERTIES:
        number = getattr(properties, name)
        if number is not None and not (isinstance(number, int) and 0 <= number <= 255):
            return ProtocolError(
                f"property {name}: {number!r:.80} is not a whole number from 0 to 255"
            )
    seconds = cast(object, properties.timestamp)
    if seconds is not None and not (isinstance(seconds, int) and 0 <= seconds < 2**64):
        return ProtocolError(
            f"property timestamp: {seconds!r:.80} is not a count of whole seconds in 64 bits"
        )
    for name in _TEXT_PROPERTIES:
        text = getattr(properties, name)
        if name == "message_id" and text is None:
            text = message_id
        if text is None:
            continue
        if not isinstance(text, str):
            return ProtocolError(
                f"property {name}: {text!r:.80} is a {type(text).__name__}, and must be text"
            )
        try:
            encode_short_string(text)
        except ProtocolError as exc:
            return ProtocolError(f"property {name}: {exc}")
    return error if isinstance(error, ProtocolError) else ProtocolError(f"properties: {error!r}")


def decode_properties(data: bytes, position: int, end: int) -> Properties:
    """The properties at `data[position:end]`: flags, then the values they announce.

    Raises:
        ProtocolError: the bytes are not a `basic` property list that ends at `end`.
    """
    try:
        content_type = content_encoding = headers = delivery_mode = priority = correlation_id = None
        reply_to = expiration = message_id = timestamp = type_ = user_id = app_id = cluster_id = (
            None
        )
        (flags,) = _U16(data, position)
        position += 2
        if flags & 0x8000:
            start = position + 1
            position = start + data[position]
            raw = data[start:position]
            content_type = _decoded.get(raw) or _decode_cached(raw)
        if flags & 0x4000:
            start = position + 1
            position = start + data[position]
            raw = data[start:position]
            content_encoding = _decoded.get(raw) or _decode_cached(raw)
        if flags & 0x2000:
            headers, position = _decode_table(data, position, 0)
        if flags & 0x1000:
            delivery_mode = data[position]
            position += 1
        if flags & 0x0800:
            priority = data[position]
            position += 1
        if flags & 0x0400:
            start = position + 1
            position = start + data[position]
            correlation_id = data[start:position].decode("utf-8", "surrogateescape")
        if flags & 0x0200:
            start = position + 1
            position = start + data[position]
            raw = data[start:position]
            reply_to = _decoded.get(raw) or _decode_cached(raw)
        if flags & 0x01FF:  # the rarer ones
            if flags & 0x0100:
                start = position + 1
                position = start + data[position]
                expiration = data[start:position].decode("utf-8", "surrogateescape")
            if flags & 0x0080:
                message_id, position = _decode_short_string(data, position)
            if flags & 0x0040:
                (timestamp,) = _U64(data, position)
                position += 8
            if flags & 0x0020:
                type_, position = _decode_short_string(data, position)
            if flags & 0x0010:
                user_id, position = _decode_short_string(data, position)
            if flags & 0x0008:
                app_id, position = _decode_short_string(data, position)
            if flags & 0x0004:
                cluster_id, position = _decode_short_string(data, position)
            if flags & 0x0003:
                raise ValueError(
                    f"flags {flags:#06x} announce properties that class basic does not have"
                )
        if position != end:
            raise ValueError(f"the values end {position - end:+d} bytes from where they must")
        return Properties(
            content_type,
            content_encoding,
            headers,
            delivery_mode,
            priority,
            correlation_id,
            reply_to,
            expiration,
            message_id,
            timestamp,
            type_,
            user_id,
            app_id,
            cluster_id,
        )
    except _BROKEN as exc:
        raise ProtocolError(f"broken properties: {exc}") from exc


def _decode_short_string(data: bytes, position: int) -> tuple[str, int]:
    start = position + 1
    position = start + data[position]
    return data[start:position].decode("utf-8", "surrogateescape"), position
