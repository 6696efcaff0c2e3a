"""State as bytes: msgpack, and what msgpack does not know as its extensions. Pure.

| extension | is | its bytes |
|---|---|---|
| 1 | `tuple` | the items, as a msgpack array |
| 2, 3 | `set`, `frozenset` | the items, each encoded, in the order of their bytes |
| 4 | `datetime` | text, ISO 8601 |
| 5 | `int` beyond 64 bits | its decimal digits |
| 6 | `Decimal` | its text |
| 7 | `UUID` | its 16 bytes |
| 8 | `msgspec.Struct`, dataclass, named tuple | an array: `module:qualified name`, then the fields by name |
| 9 | `Enum` | an array: `module:qualified name`, the value |
| 10, 11 | `date`, `timedelta` | text, ISO 8601; days, seconds and microseconds |

The same value has the same bytes in every process: sets are ordered by them, and mappings keep their own order. What is read comes
back as the type it was. A class is found again under the name it had, and only a class of the kinds above is ever called.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import msgspec

from mycelia.errors import StateIncompatible

__all__ = [
    "decode_plain_state",
    "decode_state",
    "encode_plain",
    "encode_state",
    "encode_states",
    "is_record_class",
]

_TUPLE: Final = 1
_SET: Final = 2
_FROZENSET: Final = 3
_DATETIME: Final = 4
_LARGE_INT: Final = 5
_DECIMAL: Final = 6
_UUID: Final = 7
_RECORD: Final = 8
_ENUM: Final = 9
_DATE: Final = 10
_TIMEDELTA: Final = 11

_PLAIN: Final = frozenset({bool, bytes, float, int, str, type(None)})


def encode_state(value: Any) -> bytes:
    """The bytes of a value.

    Raises:
        StateIncompatible: it, or something in it, is of a type that has no bytes here.
    """
    (encoded,) = encode_states([value])
    return encoded


def encode_states(values: Iterable[Any]) -> list[bytes]:
    """The bytes of each of many values, in less time than one by one. Raises as `encode_state()`."""
    packer = _packers.pop() if _packers else msgpack.Packer(default=_extended, strict_types=True)
    try:
        return list(map(packer.pack, values))
    finally:
        _packers.append(packer)


def encode_plain(value: str | bytes | int) -> bytes:
    """`encode_state()` of what is no container, in a third of its time."""
    try:
        return _encode_plain(value)
    except OverflowError:  # an int beyond 64 bits
        return encode_state(value)


def decode_state(data: bytes | memoryview) -> Any:
    """The value of such bytes.

    Raises:
        StateIncompatible: they name a class that is not there any more, or has other fields; or they are no such bytes.
    """
    return _read(data, _decode)


def decode_plain_state(data: bytes | memoryview) -> Any:
    """The value of such bytes, without any class: a record's fields as a dictionary, an enum's value.

    Raises:
        StateIncompatible: they are no such bytes.
    """
    return _read(data, _decode_plain)


def _read(data: bytes | memoryview, decode: Callable[[bytes | memoryview], Any]) -> Any:
    try:
        return decode(data)
    except StateIncompatible:
        raise
    except (ValueError, TypeError, msgspec.MsgspecError) as exc:
        raise StateIncompatible(
            f"{len(data)} bytes of state cannot be read ({exc}). Start from a savepoint, or reset the flow."
        ) from exc


def _extended(value: Any) -> msgpack.ExtType:
    """What msgpack does not know. Asked first for the exact types, as the fields of a subclass would be lost."""
    kind = type(value)
    if kind is tuple:
        return _extension(_TUPLE, encode_state(list(value)))
    record = _record_parts(kind)  # type: ignore[arg-type]  # classes are hashable; mypy reads `Any` of `type(value)` otherwise
    if record is not None:
        head, fields = record
        content = {name: getattr(value, name) for name in fields}
        return _extension(_RECORD, head + _encoded_fields(content))
    if kind is int:  # beyond what msgpack has a place for
        return msgpack.ExtType(_LARGE_INT, str(value).encode())
    if kind is set or kind is frozenset:
        items = sorted(encode_state(item) for item in value)
        return msgpack.ExtType(_SET if kind is set else _FROZENSET, encode_state(items))
    if isinstance(value, Enum):
        return msgpack.ExtType(_ENUM, encode_state([_name_of(kind), value.value]))
    if kind is datetime:
        return msgpack.ExtType(_DATETIME, value.isoformat().encode())
    if kind is date:
        return msgpack.ExtType(_DATE, value.isoformat().encode())
    if kind is timedelta:
        parts = [value.days, value.seconds, value.microseconds]
        return msgpack.ExtType(_TIMEDELTA, encode_state(parts))
    if kind is Decimal:
        return msgpack.ExtType(_DECIMAL, str(value).encode())
    if kind is UUID:
        return msgpack.ExtType(_UUID, value.bytes)
    raise StateIncompatible(
        f"{value!r:.60} is a {kind.__module__}.{kind.__qualname__}, which cannot be kept as state. Keep plain values, "
        "a msgspec.Struct or a dataclass."
    )


def _extension(code: int, data: bytes) -> msgpack.ExtType:
    """An `ExtType`, without its checks: a tenth of the time that a record takes."""
    return tuple.__new__(msgpack.ExtType, (code, data))


def _encoded_fields(content: dict[str, Any]) -> bytes:
    """Fields by name. Where all are plain, as those of most records are, msgspec writes the same bytes in less time."""
    if _PLAIN.issuperset(map(type, content.values())):
        try:
            return _encode_plain(content)
        except OverflowError:  # an int beyond 64 bits
            pass
    return encode_state(content)


def _restored(code: int, data: memoryview) -> Any:
    if code == _TUPLE:  # before all others: it is what there is most of
        return tuple(_decode(data))
    if code == _RECORD:
        name, content = _decode(data)
        return _record_of(name, content)
    if code == _ENUM:
        name, value = _decode(data)
        return _class_of(name)(value)
    return _restored_builtin(code, data, _decode)


def _restored_plain(code: int, data: memoryview) -> Any:
    if code in (_RECORD, _ENUM):
        _, content = _decode_plain(data)
        return content
    return _restored_builtin(code, data, _decode_plain)


def _restored_builtin(code: int, data: memoryview, decode: Callable[[Any], Any]) -> Any:
    if code == _TUPLE:
        return tuple(decode(data))
    if code == _SET:
        return {decode(item) for item in decode(data)}
    if code == _FROZENSET:
        return frozenset(decode(item) for item in decode(data))
    reader = _READERS.get(code)
    if reader is None:
        raise StateIncompatible(f"state holds an extension {code}, which this version cannot read.")
    return reader(data.tobytes())


_READERS: Final[dict[int, Callable[[bytes], Any]]] = {
    _DATETIME: lambda data: datetime.fromisoformat(data.decode()),
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIMEDELTA: lambda data: timedelta(*decode_state(data)),
    _LARGE_INT: lambda data: int(data),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
}


_decode: Final = msgspec.msgpack.Decoder(ext_hook=_restored).decode
_decode_plain: Final = msgspec.msgpack.Decoder(ext_hook=_restored_plain).decode
_encode_plain: Final = msgspec.msgpack.Encoder().encode
_packers: Final[list[Any]] = []
"""Those that are not at work: one cannot be asked for what it is in the middle of. Appending and popping are of one step for threads."""


def _name_of(kind: type) -> str:
    if "<locals>" in kind.__qualname__:
        raise StateIncompatible(
            f"{kind.__module__}.{kind.__qualname__} is a class inside a function, which nothing finds again after a restart. "
            "Move it to its module."
        )
    return f"{kind.__module__}:{kind.__qualname__}"


@lru_cache(maxsize=1024)
def _class_of(name: str) -> Any:
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as exc:
        raise StateIncompatible(
            f"state holds a {qualname} of {module}, and there is none ({exc}). Give it its name back, migrate, or reset the flow."
        ) from exc
    is_record = isinstance(found, type) and (
        _fields_of(found) is not None or issubclass(found, Enum)
    )
    if not is_record:
        raise StateIncompatible(f"state holds a {qualname} of {module}, which is no record.")
    return found


def _record_of(name: str, content: dict[str, Any]) -> Any:
    kind = _class_of(name)
    try:
        return kind(**content)
    except TypeError as exc:
        raise StateIncompatible(
            f"state holds a {name.partition(':')[2]} with the fields {', '.join(content)}, which it does not take any more "
            f"({exc}). Give new fields a default, migrate (.named(…, version=2, migrate={{1: …}})), or reset the flow."
        ) from exc


@lru_cache(maxsize=1024)
def _record_parts(kind: Any) -> tuple[bytes, tuple[str, ...]] | None:
    """How a record of a class begins, and its fields; None for what is no record."""
    fields = None if issubclass(kind, Enum) else _fields_of(kind)
    if fields is None:
        return None
    return b"\x92" + encode_state(_name_of(kind)), fields


def is_record_class(kind: Any) -> bool:
    """Whether its instances are kept as records, by the name of their class: `msgspec.Struct`, dataclass, named tuple."""
    return _fields_of(kind) is not None


@lru_cache(maxsize=1024)
def _fields_of(kind: Any) -> tuple[str, ...] | None:
    """The fields that a class is made from; None if it is none of the kinds that are kept."""
    if issubclass(kind, msgspec.Struct):
        names: tuple[str, ...] = kind.__struct_fields__
        return names
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return tuple(kind._fields)
    return None
