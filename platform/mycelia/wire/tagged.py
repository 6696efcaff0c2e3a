"""Values that JSON and msgpack have no type for, as small tagged maps.

    {"__type__": "decimal", "__value__": "1.50"}

The vocabulary is kombu's (kombu/utils/json.py, since 5.3), so that a stock Nameko peer and this platform read
each other's:

| `__type__` | `__value__` | Python type |
|---|---|---|
| `datetime` | ISO 8601 text | `datetime.datetime` |
| `date` | ISO 8601 text | `datetime.date` |
| `time` | ISO 8601 text | `datetime.time` |
| `decimal` | text | `decimal.Decimal` |
| `uuid` | `{"hex": 32 hex digits}` | `uuid.UUID` |
| `bytes` | text, the bytes being its UTF-8 | `bytes` |
| `base64` | base64 text | `bytes` |

A tag outside this table stays the plain map it is: nothing is lost, and an application may have its own.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = ["TAG_MARK", "tag_bytes", "tag_value", "untag"]

_TYPE = "__type__"
_VALUE = "__value__"

TAG_MARK = b"__type__"
"""A body without these bytes holds no tagged value, so nobody needs to look for one."""


def _tagged(type_name: str, value: Any) -> dict[str, Any]:
    return {_TYPE: type_name, _VALUE: value}


def tag_bytes(value: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Tag bytes as kombu does: as text where they are UTF-8, else as base64."""
    raw = bytes(value)
    try:
        return _tagged("bytes", raw.decode())
    except UnicodeDecodeError:
        return _tagged("base64", base64.b64encode(raw).decode())


def tag_value(value: object) -> dict[str, Any] | None:
    """Tag a date, a time, a `Decimal` or a `UUID`; `None` for any other value."""
    # `datetime` first: it is a `date` too.
    if isinstance(value, datetime):
        return _tagged("datetime", value.isoformat())
    if isinstance(value, date):
        return _tagged("date", value.isoformat())
    if isinstance(value, time):
        return _tagged("time", value.isoformat())
    if isinstance(value, Decimal):
        return _tagged("decimal", str(value))
    if isinstance(value, UUID):
        return _tagged("uuid", {"hex": value.hex})
    return None


_READERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda parts: UUID(hex=parts["hex"]),
    "bytes": lambda text: text.encode(),
    "base64": lambda text: base64.b64decode(text),
}


def untag(item: dict[Any, Any]) -> Any:
    """The value that a tagged map stands for; any other map comes back as it is.

    Raises:
        ValueError: the tag is one of ours and its value cannot be read as such.
    """
    if len(item) != 2 or _TYPE not in item or _VALUE not in item:
        return item
    type_name = item[_TYPE]
    reader = _READERS.get(type_name) if isinstance(type_name, str) else None
    if reader is None:
        return item
    try:
        return reader(item[_VALUE])
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as exc:
        text = repr(item[_VALUE])
        raise ValueError(f'tagged as "{type_name}", which {text[:60]} is not') from exc
