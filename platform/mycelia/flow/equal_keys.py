"""Keys that are equal in Python are one key: 1, 1.0, True and Decimal(1), one moment in two time zones. Whatever is kept of them is in one place. Pure.

Memory goes by equality; bytes by how a key is written. So bytes are made of one of all that are equal, the plainest.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from decimal import Context, Decimal
from itertools import chain
from operator import is_
from typing import Any, Final

from mycelia.flow.state_codec import encode_plain, encode_state

__all__ = ["has_no_equal", "key_state", "plain_key", "without_equals"]

_PLAIN: Final = frozenset({str, bytes, int})
_DOUBTFUL: Final = frozenset({float, Decimal, tuple})


def plain_key(key: Any) -> Any:
    """The plainest of all keys that are equal to this one, also within a tuple; itself, if it is."""
    kind = type(key)
    if kind in _PLAIN:
        return key
    if kind is tuple:
        parts = [part if type(part) in _PLAIN else plain_key(part) for part in key]
        return key if all(map(is_, parts, key)) else tuple(parts)
    if kind is frozenset:
        return frozenset(map(plain_key, key))
    if isinstance(key, datetime):
        return key if key.utcoffset() is None else key.astimezone(UTC)
    if isinstance(key, Decimal):
        return _plain_decimal(key)
    if isinstance(key, float):
        return int(key) if key.is_integer() else float(key)
    if isinstance(key, int):
        return int(key)
    return str.__str__(key) if isinstance(key, str) else key


def _plain_decimal(key: Decimal) -> Any:
    if not key.is_finite():
        return key
    if key == key.to_integral_value():
        return int(key)
    as_float = float(key)
    if as_float == key:
        return as_float
    return key.normalize(Context(prec=len(key.as_tuple().digits)))


def key_state(key: Any) -> bytes:
    """The bytes under which a key's state is kept.

    Raises:
        StateIncompatible: it is of a type that is not kept.
    """
    return encode_plain(key) if type(key) in _PLAIN else encode_state(plain_key(key))


def has_no_equal(key: Any) -> bool:
    """Whether a key is not even equal to itself, which is so of NaN: nothing would find again what is kept of it."""
    if type(key) is tuple:
        return any(map(has_no_equal, key))
    return bool(key != key)


def without_equals(keys: Collection[Any]) -> bool:
    """Whether some of these may be such. By their types, as it is asked of every batch."""
    kinds = set(map(type, keys))
    if tuple in kinds:
        kinds.remove(tuple)
        kinds.update(map(type, chain.from_iterable(key for key in keys if type(key) is tuple)))
    return not kinds.isdisjoint(_DOUBTFUL) and any(map(has_no_equal, keys))
