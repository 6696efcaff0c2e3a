"""msgpack, as kombu registers it (kombu/serialization.py `register_msgpack`), with more types.

`datetime`, `date`, `time`, `Decimal` and `UUID` are written as the tagged maps of `tagged.py`, not as msgpack
extension types: a stock Nameko peer, which reads with plain `msgpack.unpackb(raw=False)`, gets a small dict with
the text in it, and peers in other languages need no extension registered. Bytes are msgpack's own `bin`. Records
and sets become maps and lists.

Read: all of this; msgpack's own timestamps (extension -1) as UTC datetimes; maps with keys of any type. A stock
Nameko peer reads text keys only, whoever wrote them, because kombu reads with `strict_map_key`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import msgspec

from mycelia.errors import UndecodableMessage
from mycelia.wire.bounds import Bounds
from mycelia.wire.plain import plain_value
from mycelia.wire.tagged import TAG_MARK, tag_value, untag
from mycelia.wire.unserializable import unserializable

__all__ = ["MSGPACK_CONTENT_TYPE", "decode_msgpack", "encode_msgpack"]

MSGPACK_CONTENT_TYPE = "application/x-msgpack"

_KEPT = (bytes, bytearray, memoryview, datetime, date, time, Decimal, UUID)
_PREALLOCATING_BYTES = 4096
"""Where a list's length is announced, msgpack makes room for it. Nested a thousand deep, 5 bytes each, what a larger body
announces would be gigabytes, so it is first walked through without making anything."""

_DATETIME_FROM_TIMESTAMP = 3  # msgpack's code for "as an aware datetime"


def encode_msgpack(value: Any) -> bytes:
    """Encode to msgpack.

    Raises:
        UnserializableValueError: naming the path and type of the part that has no msgpack form.
    """
    try:
        return _encode(value)
    except Exception as exc:
        is_deep = isinstance(exc, ValueError) and str(exc).startswith("recursion limit")
        cause = RecursionError() if is_deep else exc
        raise unserializable(value, MSGPACK_CONTENT_TYPE, _encode, cause) from exc


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


def decode_msgpack(body: bytes, bounds: Bounds | None = None) -> Any:
    """Decode msgpack.

    Args:
        bounds: how much it may hold; unbounded by default.

    Raises:
        UndecodableMessage: saying why the bytes are not msgpack, or that they hold more than the bounds allow.
    """
    map_hook: Callable[[dict[Any, Any]], Any] | None = untag if body.find(TAG_MARK) >= 0 else None
    list_hook: Callable[[list[Any]], Any] | None = None
    if bounds is not None:
        count = _Count(len(body), bounds)
        list_hook = count.on_list
        map_hook = count.on_tagged_map if map_hook is untag else count.on_map
    try:
        if len(body) > _PREALLOCATING_BYTES:
            walker = msgpack.Unpacker(max_buffer_size=len(body))
            walker.feed(body)
            walker.skip()
        return msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=False,
            timestamp=_DATETIME_FROM_TIMESTAMP,
            object_hook=map_hook,
            list_hook=list_hook,
        )
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
        msgpack.UnpackException,
    ) as exc:
        # TypeError: a map with an unhashable key. OverflowError: a timestamp beyond the year 9999.
        reason = str(exc) or type(exc).__name__
        raise UndecodableMessage(
            f"a body of {len(body)} bytes is not {MSGPACK_CONTENT_TYPE}: {reason}. "
            "It may be cut off, or be published with the wrong content type."
        ) from exc


class _Count:
    """Counts what a body holds while it is decoded; msgpack's lengths cannot be found without decoding."""

    __slots__ = ("_bounds", "_containers", "_size", "_values")

    def __init__(self, size: int, bounds: Bounds) -> None:
        self._size = size
        self._bounds = bounds
        self._containers = 0
        self._values = 0

    def on_list(self, made: list[Any]) -> list[Any]:
        self._add(len(made))
        return made

    def on_map(self, made: dict[Any, Any]) -> dict[Any, Any]:
        self._add(len(made))
        return made

    def on_tagged_map(self, made: dict[Any, Any]) -> Any:
        self._add(len(made))
        return untag(made)

    def _add(self, parts: int) -> None:
        # As `check_json` counts: the first part of each is not counted beside it.
        self._containers += 1
        self._values += parts if parts else 1
        if self._containers > self._bounds.max_containers or self._values > self._bounds.max_values:
            self._bounds.check(self._size, self._containers, self._values)
