"""Errors on the wire: how one is written, and how a caller gets it back (nameko/exceptions.py:91-118).

    {"exc_type": "ValueError", "exc_path": "builtins.ValueError", "exc_args": ["no plane N1"],
     "value": "no plane N1", "traceback": "Traceback (most recent call last): ..."}

`traceback` is an addition; stock Nameko reads the keys it knows with `.get()` and passes over others. The platform's
errors that Nameko has too travel under Nameko's names, so that stock callers get their own classes. Nameko's own
classes are never imported here, but where the process has imported them, what a caller gets can be caught by either
name (`nameko_twin`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from mycelia.errors import (
    ContractError,
    IncorrectSignature,
    MalformedRequest,
    MethodNotFound,
    MyceliaError,
    Overloaded,
    RemoteError,
    UndecodableMessage,
    UnserializableValueError,
    class_name_of,
    traceback_of,
)

__all__ = [
    "MAX_TRACEBACK_BYTES",
    "deserialize_exception",
    "nameko_twin",
    "register_remote_error",
    "serialize_exception",
]

MAX_TRACEBACK_BYTES: Final = 16 * 1024
"""Enough for some hundred frames; the end is kept, where the error is."""

_MAX_DEPTH = 16
_MAX_ITEMS = 1000  # of an iterable argument, which may be endless
_MAX_TOTAL = 20_000  # of all arguments together: a thousand lists of a thousand are a million
_MAX_TEXT = 1_000_000  # characters, of all arguments together, and of the error's own text
_LEFT_OUT = "…"

_NAMEKO = "nameko.exceptions"
_TRAVEL_AS_NAMEKO = frozenset(
    {MethodNotFound, IncorrectSignature, MalformedRequest, UnserializableValueError}
)

_registry: dict[str, type[Exception]] = {
    **{f"{_NAMEKO}.{cls.__name__}": cls for cls in _TRAVEL_AS_NAMEKO},
    **{
        f"{cls.__module__}.{cls.__name__}": cls
        for cls in (Overloaded, ContractError, UndecodableMessage)
    },
}

_E = TypeVar("_E", bound=type[Exception])


def register_remote_error(cls: _E) -> _E:
    """Class decorator: a caller gets this class back, not a `RemoteError`.

    Both sides must know the class under the same dotted path. It is built from the arguments as they arrive, which
    are text or lists and dicts of text; if it refuses them the caller gets a `RemoteError`.
    """
    _registry[_path(cls)] = cls
    return cls


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


# --- out -----------------------------------------------------------------------------------------


def serialize_exception(exc: BaseException, *, traceback: bool) -> dict[str, Any]:
    """An error as a dict that every serializer can carry. Never raises.

    Args:
        exc: the error.
        traceback: also carry its traceback as text, at most `MAX_TRACEBACK_BYTES`.
    """
    cls = _wire_class(type(exc))
    name = class_name_of(exc)
    error: dict[str, Any] = {
        "exc_type": name,
        "exc_path": f"{_NAMEKO}.{name}" if cls in _TRAVEL_AS_NAMEKO else _path_of(cls, name),
        "exc_args": _safe_arguments(exc),
        "value": _Budget().cut(_text(exc)),
    }
    if traceback:
        error["traceback"] = _end_of_traceback(exc)
    return error


def _wire_class(cls: type[BaseException]) -> type[BaseException]:
    """The class under whose name an error travels: a twin (`nameko_twin`) goes as the platform's class."""
    return _twinned.get(cls, cls)


def _path_of(cls: type[BaseException], name: str) -> str:
    try:
        return f"{_text(cls.__module__)}.{name}"
    except BaseException:  # noqa: BLE001  # a metaclass may do anything
        return name


def _safe_arguments(exc: BaseException) -> list[Any]:
    try:
        args = tuple(exc.args)
    except BaseException:  # noqa: BLE001  # `args` may be a property of the application's
        return [_Budget().cut(_text(exc))]
    budget = _Budget()
    return [_safe(arg, 0, budget) for arg in args]


class _Budget:
    """How many more values one error may carry, and how much more text."""

    def __init__(self) -> None:
        self.values = _MAX_TOTAL
        self.text = _MAX_TEXT

    def cut(self, text: str) -> str:
        """As much of `text` as there is room for."""
        room, self.text = self.text, max(self.text - len(text), 0)
        return text if len(text) <= room else text[:room] + _LEFT_OUT


def _safe(value: Any, depth: int, budget: _Budget) -> Any:
    """Text as it is; maps and iterables with their items made safe; all else as its `str()`.

    As Nameko's `safe_for_serialization`, except that bytes become text and not a list of numbers, and that what is beyond
    the budget or too deep is left out.
    """
    budget.values -= 1
    try:
        if not isinstance(value, (str, bytes, bytearray)) and isinstance(value, Iterable):
            if depth >= _MAX_DEPTH or budget.values <= 0:
                return _LEFT_OUT
            if isinstance(value, Mapping):
                pairs = islice(value.items(), min(_MAX_ITEMS, budget.values))
                return {
                    budget.cut(_text(key)): _safe(item, depth + 1, budget) for key, item in pairs
                }
            items = islice(value, min(_MAX_ITEMS, budget.values))
            return [_safe(item, depth + 1, budget) for item in items]
    except BaseException:  # noqa: BLE001  # an error must travel even if its arguments misbehave
        return budget.cut(_text(value))
    return budget.cut(_text(value))


def _text(value: Any) -> str:
    """The text of a value, as valid UTF-8."""
    try:
        if isinstance(value, (bytes, bytearray)):
            return value.decode(errors="backslashreplace")
        # `str`'s own method: what `__str__` returns may be of a class that overrides it
        return str.encode(str(value), errors="backslashreplace").decode()
    except BaseException:  # noqa: BLE001
        return "[__unicode__ failed]"  # Nameko's words


def _end_of_traceback(exc: BaseException) -> str:
    raw = traceback_of(exc).encode()
    excess = len(raw) - MAX_TRACEBACK_BYTES
    if excess <= 0:
        return raw.decode()
    mark = b"[the beginning is left out]\n"
    return (mark + raw[excess + len(mark) :]).decode(errors="ignore")


# --- in ------------------------------------------------------------------------------------------


def deserialize_exception(error: Any) -> Exception:
    """The error in a reply: an instance of its registered class, else a `RemoteError`. Never raises.

    Looked up first among `register_remote_error()`'s classes, then among those that users registered with Nameko's
    `deserialize_to_instance`. The remote traceback, if any, is the attribute `remote_traceback` and a note.
    """
    if not isinstance(error, Mapping):
        return _remote_error("malformed", f"the reply's error is {_text(error)[:200]!r}", None)
    remote_traceback = error.get("traceback")
    if not isinstance(remote_traceback, str):
        remote_traceback = None
    exc = _rebuilt(error.get("exc_path"), error.get("exc_args"))
    if exc is None:
        exc_type, value = error.get("exc_type"), error.get("value")
        exc = _remote_error(
            exc_type if exc_type is None else _text(exc_type),
            value if value is None else _text(value),
            remote_traceback,
        )
    elif isinstance(exc, MyceliaError) and not exc.args:
        # Stock Nameko's `UnserializableValueError` sends no arguments; its text is all there is.
        exc.args = (_text(error.get("value") or ""),)
    if isinstance(exc, (MethodNotFound, IncorrectSignature)):
        # Their arguments are Nameko's, for stock callers; the text of a Mycelia service says more.
        exc.explanation = _text(error.get("value") or "")
    if remote_traceback:
        _attach_traceback(exc, remote_traceback)
    return exc


def _rebuilt(path: Any, args: Any) -> Exception | None:
    if not isinstance(path, str):
        return None
    cls: Any = _registry.get(path)
    if cls is None:
        cls = _registered_with_nameko(path)
    elif path.startswith(_NAMEKO):
        cls = nameko_twin(cls)
    if cls is None:
        return None
    try:
        exc = cls(*args) if isinstance(args, (list, tuple)) else cls()
    except Exception:  # noqa: BLE001  # a constructor that refuses the arguments
        return None
    return exc if isinstance(exc, Exception) else None


def _registered_with_nameko(path: str) -> Any:
    registry = getattr(sys.modules.get(_NAMEKO), "registry", None)
    return registry.get(path) if isinstance(registry, dict) else None


def _remote_error(exc_type: str | None, value: str | None, traceback: str | None) -> RemoteError:
    return nameko_twin(RemoteError)(exc_type, value, traceback)


def _attach_traceback(exc: Exception, remote_traceback: str) -> None:
    try:
        exc.remote_traceback = remote_traceback  # type: ignore[attr-defined]
        exc.add_note(f"Remote traceback:\n{remote_traceback}")
    except Exception:  # noqa: BLE001, S110  # a class that refuses attributes is still the error to raise
        pass


# --- both names ----------------------------------------------------------------------------------

_C = TypeVar("_C", bound=type[Exception])

_twinned: dict[type[BaseException], type[BaseException]] = {}
"""A twin → the platform's class that it stands for."""
_twins: dict[type[Exception], type[Exception]] = {}


def nameko_twin(cls: _C) -> _C:
    """The class to raise so that code written for Nameko catches it too.

    Where `nameko.exceptions` is imported and has a class of the same name, a subclass of both; else `cls` itself.
    So `except nameko.exceptions.RemoteError` goes on working in services that are moved over.
    """
    theirs = getattr(sys.modules.get(_NAMEKO), cls.__name__, None)
    if not (isinstance(theirs, type) and issubclass(theirs, Exception)) or issubclass(cls, theirs):
        return cls
    twin = _twins.get(cls)
    if twin is None or not issubclass(twin, theirs):
        twin = _twins[cls] = _twin_of(cls, theirs)
        _twinned[twin] = cls
    return twin  # type: ignore[return-value]


def _twin_of(cls: type[Exception], theirs: type[Exception]) -> type[Exception]:
    def init(self: Exception, *args: Any, **kwargs: Any) -> None:
        # Not `super().__init__`, which would also run their constructor, on our message.
        plain = cls(*args, **kwargs)
        self.args = plain.args
        self.__dict__.update(plain.__dict__)

    namespace = {
        "__init__": init,
        "__str__": cls.__str__,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    return type(cls.__name__, (cls, theirs), namespace)
