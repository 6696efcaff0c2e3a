"""The values of a log as msgpack, and back as what the log is `of`. Pure.

A value is written by msgspec: records (dataclass, `TypedDict`, `NamedTuple`, `msgspec.Struct`, attrs) as maps, a datetime in a
time zone as msgpack's own timestamp (extension -1), one without as ISO 8601 text, `date`, `time`, `Decimal` and `UUID` as text. Read with
a type, all of them come back as they were; read without (`of=None`), the text stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from mycelia.errors import ConfigError, UnserializableValueError, describe
from mycelia.logs.record import RecordHeaders
from mycelia.wire.plain import plain_value

__all__ = ["Columns", "ValueCodec", "array_header", "array_items"]

T = TypeVar("T")

Columns = tuple[list[Any] | None, list[int | None] | None, list[RecordHeaders] | None, list[Any]]
"""Keys, times, headers and values of a batch; one of the first three is `None` where no record has any."""

_FIXED = 0x90
_16_BITS = 0xDC
_32_BITS = 0xDD


def array_header(count: int) -> bytes:
    """How msgpack begins an array of `count` items."""
    if count < 16:
        return bytes((_FIXED | count,))
    if count < 0x10000:
        return bytes((_16_BITS,)) + count.to_bytes(2, "big")
    return bytes((_32_BITS,)) + count.to_bytes(4, "big")


def array_items(array: bytes) -> bytes:
    """A msgpack array that we have written, without its beginning."""
    return array[{_16_BITS: 3, _32_BITS: 5}.get(array[0], 1) :]


class ValueCodec(Generic[T]):
    """Writes and reads the values of one log.

    Args:
        of: the type of the values, as msgspec takes types; `None` or `Any` takes whatever msgpack can carry.
        what: whose it is, for error texts.

    Raises:
        ConfigError: msgspec cannot read this type.
    """

    def __init__(self, of: Any, what: str) -> None:
        self._what = what
        self._is_typed = of is not None and of is not Any
        value_type: Any = of if self._is_typed else Any
        self.of = of
        self._encode = msgspec.msgpack.Encoder(enc_hook=plain_value).encode
        try:
            self._list = msgspec.msgpack.Decoder(list[value_type])
            self._columns: Any = msgspec.msgpack.Decoder(
                tuple[
                    list[Any] | None,
                    list[int | None] | None,
                    list[dict[str, Any] | None] | None,
                    list[value_type],
                ]
            )
            self._one = msgspec.msgpack.Decoder(value_type)
            self._json = msgspec.json.Decoder(value_type)
        except TypeError as exc:
            raise ConfigError(
                f"{what}: of={of!r} is no type whose values can be read: {exc}. "
                "Use a dataclass, a TypedDict, a msgspec.Struct, or a type made of these and of plain ones."
            ) from exc

    def encode(self, values: Sequence[Any]) -> bytes:
        """The values as the items of a msgpack array, one behind the other.

        Raises:
            UnserializableValueError: names the value by its place, and what of it is not what the log is `of`.
        """
        try:
            array = self._encode(values if type(values) is list else list(values))
            if self._is_typed:
                _decoded(self._list.decode, array)  # who reads it will do the same
        except _UNWRITABLE as exc:
            raise self._refusal(values, exc) from exc
        return array_items(array)

    def _refusal(self, values: Sequence[Any], error: Exception) -> UnserializableValueError:
        """The error for what cannot be written, with the first value that is to blame."""
        at, error = next(self._blamed(values), (0, error))
        wanted = f", which is of {getattr(self.of, '__name__', self.of)}" if self._is_typed else ""
        which = f"value {at} of {len(values)}" if len(values) > 1 else "the value"
        return UnserializableValueError(
            f"{self._what}{wanted}: {which}, {type(values[at]).__name__}, cannot be appended: {error}. "
            "Nothing was appended."
        )

    def _blamed(self, values: Sequence[Any]) -> Iterator[tuple[int, Exception]]:
        for at, value in enumerate(values):
            try:
                body = self._encode(value)
                if self._is_typed:
                    _decoded(self._one.decode, body)
            except _UNWRITABLE as exc:
                yield at, exc

    def decode_columns(self, body: bytes) -> Columns:
        """A batch's body as columns: one call.

        Raises:
            msgspec.DecodeError: it is no msgpack.
            msgspec.ValidationError: it is, and of another form.
        """
        columns: Columns = _decoded(self._columns.decode, body)
        return columns

    def decode_value(self, body: bytes) -> T:
        """One value, as msgpack.

        Raises:
            msgspec.MsgspecError: it is not that.
        """
        value: T = _decoded(self._one.decode, body)
        return value

    def decode_json(self, body: bytes) -> T:
        """One value, as JSON.

        Raises:
            msgspec.MsgspecError: it is not that.
        """
        value: T = _decoded(self._json.decode, body)
        return value


def _decoded(decode: Callable[[bytes], Any], body: bytes) -> Any:
    """What msgspec makes of a body. The type may have a say in it, as with `__post_init__`, and raise anything.

    Raises:
        msgspec.MsgspecError, TypeError, ValueError, RecursionError: it is not that.
    """
    try:
        return decode(body)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        raise
    except BaseException as exc:
        raise msgspec.ValidationError(f"its type does not take it: {describe(exc)}") from exc


_UNWRITABLE: tuple[type[Exception], ...] = (
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    msgspec.MsgspecError,
)
