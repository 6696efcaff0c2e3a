"""What an encoder may write in place of a type that it does not know."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Set
from typing import Any

__all__ = ["plain_value"]


def plain_value(value: Any) -> Any:
    """The plain form of a value: of a `__json__()` object, a mapping, a set, a deque, a subclass of a scalar.

    Raises:
        TypeError: there is none.
    """
    reducer = getattr(value, "__json__", None)
    if reducer is not None and not isinstance(value, type):
        return reducer()
    # msgspec takes subclasses of scalars only when told what they are.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (deque, Set)):
        return list(value)
    raise TypeError(f"objects of type {type(value).__name__} have no plain form")
