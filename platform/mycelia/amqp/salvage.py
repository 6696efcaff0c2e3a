"""What can be read of properties that cannot be decoded. Pure.

A header table may be broken, of a type that nobody knows, or nested deeper than the codec takes. Its message is handed up all
the same, so that it is answered or buried instead of lost, and for that `correlation_id` and `reply_to` are needed, which stand
behind the headers. The table says how long it is, and so does every value in it but those of an unknown type: what cannot be
read is passed over, and the rest is kept.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final, NamedTuple

from mycelia.amqp.fields import decode_table
from mycelia.amqp.model import Properties
from mycelia.errors import ProtocolError

__all__ = ["Salvaged", "salvage_properties"]

_U16 = Struct(">H").unpack_from
_U32 = Struct(">I").unpack_from
_U64 = Struct(">Q").unpack_from
_PACK_U32 = Struct(">I").pack

_IN_ORDER: Final = (
    (0x8000, "content_type"),
    (0x4000, "content_encoding"),
    (0x2000, "headers"),
    (0x1000, "delivery_mode"),
    (0x0800, "priority"),
    (0x0400, "correlation_id"),
    (0x0200, "reply_to"),
    (0x0100, "expiration"),
    (0x0080, "message_id"),
    (0x0040, "timestamp"),
    (0x0020, "type"),
    (0x0010, "user_id"),
    (0x0008, "app_id"),
    (0x0004, "cluster_id"),
)
"""The properties as they follow one another, each with the flag that announces it (AMQP 0-9-1 §4.2.6.1)."""

_FIXED: Final = {
    kind: size
    for kinds, size in ((b"V", 0), (b"tbB", 1), (b"sUu", 2), (b"Iif", 4), (b"D", 5), (b"lLdT", 8))
    for kind in kinds
}
"""Octets of a value, by field type."""

_MEASURED: Final = frozenset(b"SxAF")
"""Field types whose value begins with its length."""


class Salvaged(NamedTuple):
    """What was read."""

    properties: Properties
    """`None` for what is absent, and for what stands behind something whose end cannot be told. `headers` holds the entries
    that can be decoded, and is `None` where the message has no table."""
    raw_headers: bytes
    """The header table as it came, its length included, as far as it goes; empty where there is none."""


class _Short(Exception):
    """The bytes end too soon."""


def salvage_properties(data: bytes, position: int, end: int) -> Salvaged:
    """Read what can be read of the property list at `data[position:end]`. Never raises, whatever the bytes are."""
    raw = data[position:end]
    properties = Properties()
    raw_headers = b""
    if len(raw) < 2:
        return Salvaged(properties, raw_headers)
    (flags,) = _U16(raw, 0)
    at = 2
    try:
        for flag, name in _IN_ORDER:
            if not flags & flag:
                continue
            value: Any
            if name == "headers":
                raw_headers, at = _cut_table(raw, at)
                value = _readable_entries(raw_headers)
                properties.headers = value
                if at > len(raw):
                    raise _Short
                continue
            if name in ("delivery_mode", "priority"):
                value, at = _cut(raw, at, 1)[0], at + 1
            elif name == "timestamp":
                value, at = _U64(_cut(raw, at, 8), 0)[0], at + 8
            else:
                size = _cut(raw, at, 1)[0]
                value = _cut(raw, at + 1, size).decode("utf-8", "surrogateescape")
                at += 1 + size
            setattr(properties, name, value)
    except _Short:
        pass
    return Salvaged(properties, raw_headers)


def _cut(raw: bytes, at: int, size: int) -> bytes:
    piece = raw[at : at + size]
    if len(piece) != size:
        raise _Short
    return piece


def _cut_table(raw: bytes, at: int) -> tuple[bytes, int]:
    """The table at `at`, and where it ends by its own word, which may lie behind the end of `raw`."""
    (size,) = _U32(_cut(raw, at, 4), 0)
    return raw[at : at + 4 + size], at + 4 + size


def _readable_entries(table: bytes) -> dict[str, Any]:
    """The entries of `table` that can be decoded, up to the first whose end cannot be told."""
    headers: dict[str, Any] = {}
    at = 4
    try:
        while at < len(table):
            start = at
            at += 1 + table[at]
            kind = _cut(table, at, 1)[0]
            at += 1
            if kind in _MEASURED:
                at += 4 + _U32(_cut(table, at, 4), 0)[0]
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                break
            if at > len(table):
                break
            entry = table[start:at]
            try:
                headers.update(decode_table(_PACK_U32(len(entry)) + entry)[0])
            except ProtocolError:
                continue
    except _Short:
        pass
    return headers
