"""msgpack, as kombu registers it (kombu/serialization.py `register_msgpack`), with more types.

`datetime`, `date`, `time`, `Decimal` and `UUID` are written as the tagged maps of `tagged.py`, not as msgpack
extension types: a stock Nameko peer, which reads with plain `msgpack.unpackb(raw=False)`, gets a small dict with
the text in it, and peers in other languages need no extension registered. Bytes are msgpack's own `bin`. Records
and sets become maps and lists.

Read: all of this; msgpack's own timestamps (extension -1) as UTC datetimes; maps with keys of any type. A stock
Nameko peer reads text keys only, whoever wrote them, because kombu reads with `strict_map_key`.
"""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import msgspec

from mycelia.errors import UndecodableMessage
from mycelia.wire.plain import plain_value
from mycelia.wire.tagged import TAG_MARK, tag_value, untag
from mycelia.wire.unserializable import unserializable

__all__ = ["MSGPACK_CONTENT_TYPE", "decode_msgpack", "encode_msgpack"]

MSGPACK_CONTENT_TYPE = "application/x-msgpack"

_KEPT = (bytes, bytearray, memoryview, datetime, date, time, Decimal, UUID)
_DATETIME_FROM_TIMESTAMP = 3  # msgpack's code for "as an aware datetime"


def encode_msgpack(value: Any) -> bytes:
    """Encode to msgpack.

    Raises:
        UnserializableValueError: naming the path and type of the part that has no msgpack form.
    """
    try:
        return _encode(value)
    except Exception as exc:
        raise unserializable(value, MSGPACK_CONTENT_TYPE, _encode, exc) from exc


def _encode(value: Any) -> bytes:
    # A `Packer` for each call: a shared one is not safe when `_lowered` lets another thread in.
    body: bytes = msgpack.packb(value, default=_lowered, use_bin_type=True)
    return body


def _lowered(value: Any) -> Any:
    """What msgpack can pack in place of a type that it does not know (`default`)."""
    tagged = tag_value(value)
    if tagged is not None:
        return tagged
    if hasattr(value, "__json__"):
        return plain_value(value)
    return msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=plain_value)


def decode_msgpack(body: bytes) -> Any:
    """Decode msgpack.

    Raises:
        UndecodableMessage: saying why the bytes are not msgpack.
    """
    hook = untag if body.find(TAG_MARK) >= 0 else None
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=False,
            timestamp=_DATETIME_FROM_TIMESTAMP,
            object_hook=hook,
        )
    except (ValueError, TypeError, ArithmeticError, RecursionError, msgpack.UnpackException) as exc:
        # TypeError: a map with an unhashable key. OverflowError: a timestamp beyond the year 9999.
        reason = str(exc) or type(exc).__name__
        raise UndecodableMessage(
            f"a body of {len(body)} bytes is not {MSGPACK_CONTENT_TYPE}: {reason}. "
            "It may be cut off, or be published with the wrong content type."
        ) from exc
