"""What the records of a log are made of: the type of their values, and where in a value its key and time stand. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any, Final, Generic, TypeVar, is_typeddict

from mycelia.durations import duration_text
from mycelia.errors import ConfigError, ContractError
from mycelia.logs.partitioning import checked_key
from mycelia.logs.record import RecordKey
from mycelia.logs.value_codec import ValueCodec

__all__ = [
    "YEAR_MS",
    "Extractor",
    "RecordShape",
    "checked_column",
    "impossible_time",
    "latest_possible",
    "time_ms_of",
]

T = TypeVar("T")

Extractor = str | Callable[[Any], Any]
"""A field's name, or a function of the value."""


def checked_column(column: Any, where: str) -> Any:
    """The same: one thing for each record, in their order. A dictionary's keys and a text's letters are none, though they could be gone through.

    Raises:
        TypeError: it is no sequence.
    """
    is_one = isinstance(column, str | bytes | bytearray | memoryview | Mapping)
    if is_one or not (hasattr(column, "__len__") and hasattr(column, "__getitem__")):
        raise TypeError(
            f"{where}: {column!r:.60} is a {type(column).__name__}; expected a list, with one for each record."
        )
    return column


def time_ms_of(time: object) -> int | None:
    """A time as milliseconds since the epoch: of a datetime in a time zone, of whole milliseconds, of nothing.

    Raises:
        ContractError: it is something else.
    """
    if time is None:
        return None
    if type(time) is int and -(2**63) <= time < 2**63:
        return time
    if isinstance(time, datetime) and time.utcoffset() is not None:
        return round(time.timestamp() * 1000)
    raise ContractError(
        f"time {time!r:.60} is no moment: expected a datetime in a time zone, or whole milliseconds since the epoch."
    )


YEAR_MS: Final = 365 * 86_400_000

_FURTHEST_MS: Final = 2**60
"""No time is after this, whatever is allowed: state and watermarks are of 64 bits."""


def latest_possible(now_ms: int | None, ahead_ms: int) -> int:
    """The latest event time that can be, as of the wall. A clock that says 1970 has not been set: it tells nothing of what is ahead of it."""
    if now_ms is None or now_ms < YEAR_MS:
        return _FURTHEST_MS
    return min(now_ms + ahead_ms, _FURTHEST_MS)


def impossible_time(
    time_ms: int, now_ms: int | None, ahead_ms: int, setting: str, before_ms: int | None = None
) -> str | None:
    """Why an event time cannot be; `None` if it can.

    Args:
        now_ms: of the wall; `None`: not known.
        ahead_ms: how far beyond now it may lie, and beyond `before_ms`.
        setting: where that is said, for the text.
        before_ms: the greatest of its partition so far.
    """
    told = f"{time_ms} ms" if abs(time_ms) < _FURTHEST_MS else "no moment at all"
    if time_ms < 0:
        return f"its event time is before 1970 ({told})"
    ahead = duration_text(ahead_ms / 1000)
    if before_ms is not None and time_ms > before_ms + ahead_ms:
        return f"its event time ({told}) is more than {ahead} after all others of its partition ({setting})"
    if time_ms > latest_possible(now_ms, ahead_ms):
        return f"its event time ({told}) is more than {ahead} in the future ({setting})"
    return None


class RecordShape(Generic[T]):
    """How a value becomes a record.

    Args:
        what: whose it is, for error texts: `log "flights.departed"`.
        of: the type of the values; `None`: any.
        key: where a value's key stands; `None`: records have none unless it is named.
        time: where its time stands.

    Raises:
        ConfigError: no type that can be read, or no such field.
    """

    def __init__(self, what: str, of: Any, key: Extractor | None, time: Extractor | None) -> None:
        self.what = what
        self.codec: ValueCodec[T] = ValueCodec(of, what)
        self._key = _getter(what, of, "key", key)
        self._time = _getter(what, of, "time", time)

    @property
    def has_key(self) -> bool:
        """Whether a value tells its key."""
        return self._key is not None

    @property
    def has_time(self) -> bool:
        """Whether a value tells its time."""
        return self._time is not None

    def key_of(self, value: T) -> RecordKey:
        """The key that a value tells.

        Raises:
            ContractError: it cannot be had, or is none.
        """
        if self._key is None:
            return None
        key = self._asked("key", self._key, value)
        try:
            return checked_key(key)
        except ContractError as exc:
            raise ContractError(f"{self.what}: {type(value).__name__}: {exc}") from exc

    def keys_of(self, values: Sequence[T]) -> list[RecordKey]:
        """The keys that values tell, in one pass where all is in order.

        Raises:
            ContractError: as `key_of()`.
        """
        if self._key is None:
            return [None] * len(values)
        try:
            keys = list(map(self._key, values))
        except BaseException:  # noqa: BLE001  whatever a user's function raises: told below, with the value
            keys = []
        if len(keys) == len(values) and _PLAIN_KEYS.issuperset(map(type, keys)):
            return keys
        return [self.key_of(value) for value in values]

    def times_of(self, values: Sequence[T]) -> list[int | None]:
        """The times that values tell, as `keys_of()` the keys.

        Raises:
            ContractError: as `time_of()`.
        """
        if self._time is None:
            return [None] * len(values)
        try:
            times = list(map(self._time, values))
        except BaseException:  # noqa: BLE001  as above
            times = []
        if (
            len(times) == len(values)
            and {int}.issuperset(map(type, times))
            and (not times or (min(times) >= -(2**63) and max(times) < 2**63))
        ):
            return times
        return [self.time_of(value) for value in values]

    def time_of(self, value: T) -> int | None:
        """The time that a value tells, in milliseconds since the epoch.

        Raises:
            ContractError: it cannot be had, or is no moment.
        """
        if self._time is None:
            return None
        return time_ms_of(self._asked("time", self._time, value))

    def _asked(self, what: str, get: Callable[[Any], Any], value: Any) -> Any:
        try:
            return get(value)
        except BaseException as exc:  # a `SystemExit` would end whoever reads, too
            raise ContractError(
                f"{self.what}: a {type(value).__name__} has no {what}: {type(exc).__name__}: {exc}."
            ) from exc


_PLAIN_KEYS = {str, bytes, type(None)}
"""Keys that need no look at each; text is looked at where it is hashed."""


def _getter(what: str, of: Any, option: str, where: Any) -> Callable[[Any], Any] | None:
    if where is None:
        return None
    if callable(where):
        function: Callable[[Any], Any] = where
        return function
    if not isinstance(where, str) or not where:
        raise ConfigError(f"{what}: {option}={where!r}; expected a field's name or a function.")
    fields = getattr(of, "__annotations__", None) if isinstance(of, type) else None
    if is_typeddict(of) or of is dict:
        get: Callable[[Any], Any] = itemgetter(where)
    elif fields is None:
        get = _either_getter(where)
    else:
        get = attrgetter(where)
    known = _known_fields(of)
    if known is not None and where not in known:
        raise ConfigError(
            f"{what}: {option}={where!r}: {of.__name__} has no such field; it has {', '.join(known)}."
        )
    return get


def _known_fields(of: Any) -> list[str] | None:
    """The fields of a record type; `None` where it has none that are known."""
    if not isinstance(of, type) or of in (dict, object):
        return None
    bases = [of] if is_typeddict(of) else reversed(of.__mro__)
    names = [name for cls in bases for name in inspect.get_annotations(cls)]
    return list(dict.fromkeys(names)) or None


def _either_getter(name: str) -> Callable[[Any], Any]:
    def get(value: Any) -> Any:
        return value[name] if isinstance(value, Mapping) else getattr(value, name)

    return get
