"""What users' code ends with, as an error of theirs: none of it ends the process, or a task without a word."""

from __future__ import annotations

import asyncio
import inspect
from copy import deepcopy
from typing import Any, Final, TypeVar

from mycelia.errors import ConfigError, FlowError, describe

__all__ = ["apart_from", "error_of", "expect_function", "is_called_off", "repr_of_value"]

T = TypeVar("T")

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
_MOST_PARTS: Final = 16


def repr_of_value(value: object, most: int = 80) -> str:
    """How a value shows itself, up to so many characters; its type, where it cannot."""
    try:
        return repr(value)[:most]
    except BaseException:  # noqa: BLE001  its `__repr__` is the user's
        return f"<{type(value).__qualname__}>"


def expect_function(function: object, what: str, of: str = "a function of a record") -> None:
    """
    Raises:
        ConfigError: it is no function, or an `async def` one, whose answer would be a coroutine, and true.
    """
    if not callable(function):
        raise ConfigError(f"{what}: expected {of}; got {function!r:.60}.")
    called = getattr(function, "__call__", None)  # noqa: B004  of an object, its method
    for one in (function, called):
        if inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one):
            raise ConfigError(
                f"{what}: expected {of}, and this is an `async def` one. What awaits belongs into map_async() or flat_map_async()."
            )


def apart_from(state: Any, value: T) -> T:
    """`value`, or a copy where it is the state itself, or has parts in common with it that may change: what is given stays as it was.

    The state is looked into one deep, and so is the value; a state or a value of more than sixteen parts is not.
    """
    if type(value) in _ATOMS or type(state) in _ATOMS:
        return value
    parts = [one for one in _parts_of(value) if type(one) not in _ATOMS]
    if value is state or any(one is state for one in parts):
        return deepcopy(value)
    for held in _parts_of(state):
        if type(held) not in _ATOMS and (held is value or any(one is held for one in parts)):
            return deepcopy(value)
    return value


def _parts_of(value: Any) -> Any:
    kind = type(value)
    if kind is tuple or kind is list:
        return value if len(value) <= _MOST_PARTS else ()
    if kind is dict:
        return value.values() if len(value) <= _MOST_PARTS else ()
    fields = getattr(kind, "__struct_fields__", None)
    if fields is not None:
        return [getattr(value, name) for name in fields]
    return getattr(value, "__dict__", {}).values()


def error_of(exc: BaseException) -> Exception:
    """An `Exception` as it is; of what is none (`SystemExit`, a cancellation of something that was awaited) an error that says so.

    A task that a `SystemExit` leaves ends the event loop, and one that a `CancelledError` leaves just ends.
    """
    if isinstance(exc, Exception):
        return exc
    error = FlowError(f"it ended with {describe(exc)}")
    error.__cause__ = exc
    return error


def is_called_off(exc: BaseException) -> bool:
    """Whether it is the cancellation of the running task itself, and not of something that it awaited."""
    task = asyncio.current_task()
    is_cancelled = isinstance(exc, asyncio.CancelledError)
    return is_cancelled and (task is None or task.cancelling() > 0)
