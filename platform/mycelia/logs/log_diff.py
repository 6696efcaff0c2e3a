"""Whether two logs say the same: records compared by what identifies them. For a new version of code run beside the old. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, NamedTuple

import msgspec

from mycelia.errors import ConfigError
from mycelia.logs.record import Record

__all__ = [
    "DiffRoom",
    "LogComparison",
    "LogDiffReport",
    "LogDifference",
    "PackedRecord",
    "is_compared",
]

MAX_RECORDS: Final = 2_000_000
MAX_BYTES: Final = 1024 * 1024 * 1024
"""Kept of all logs together. Arbitrary; beyond it somebody should look at a shorter time."""

_EACH_BYTES: Final = 250
"""What it takes to keep a record, beside its identity and value."""

_encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=repr).encode
_decode = msgspec.msgpack.Decoder().decode


def is_compared(time: int | None, from_ms: float | None, until_ms: float | None) -> bool:
    """Whether a record of that time is one of those from `from_ms` on that are before `until_ms`. Without a time it always is."""
    return time is None or (
        (from_ms is None or time >= from_ms) and (until_ms is None or time < until_ms)
    )


class PackedRecord(NamedTuple):
    """What is kept of a record."""

    time: int | None
    identity: bytes
    value: bytes


class DiffRoom:
    """How much may be kept of the records that are compared. Shared by all that keep some."""

    def __init__(self, max_records: int = MAX_RECORDS, max_bytes: int = MAX_BYTES) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._records = self._bytes = 0

    def take(self, record: PackedRecord) -> None:
        """
        Raises:
            ConfigError: there is no room for it.
        """
        self._records += 1
        self._bytes += len(record.identity) + len(record.value) + _EACH_BYTES
        if self._records > self._max_records or self._bytes > self._max_bytes:
            raise ConfigError(
                f"more to compare than is kept in memory ({self._max_records} records, {self._max_bytes / 2**20:.0f} MiB): say a later --from, or an "
                "earlier --until."
            )


class LogDifference(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing in which the records of one identity differ."""

    identity: list[Any]
    """What was compared by, in the order in which it was asked for."""
    at: int
    """Which of the records of that identity, from 0."""
    left: Any
    right: Any
    has_left: bool
    """Whether there is such a record."""
    has_right: bool


class LogDiffReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a comparison. Identities are counted, not records."""

    left_records: int
    right_records: int
    same: int
    different: int
    only_left: int
    only_right: int
    differences: list[LogDifference]
    """The first of them, in the order in which they came; those included that only one side has."""

    @property
    def is_same(self) -> bool:
        return not (self.different or self.only_left or self.only_right)


class LogComparison:
    """Takes the records of both sides, in any order between identities.

    Args:
        by: what identifies a record: `key`, `time`, `value.NAME` (dots lead deeper), `headers.NAME`. All records of one identity
            are compared in their order.
        ignore: parts of values that do not count, as `NAME` or `NAME.DEEPER`: when it was computed, by whom.
        last_only: the last record of an identity counts: of logs whose records replace each other.

    Raises:
        ConfigError: what is compared by is none of these.
    """

    def __init__(
        self, by: Sequence[str] = ("key",), ignore: Sequence[str] = (), *, last_only: bool = False
    ) -> None:
        for part in by or ("",):
            first, _, rest = part.partition(".")
            if part not in ("key", "time") and not (first in ("value", "headers") and rest):
                raise ConfigError(
                    f"compared by {part!r}: expected key, time, value.NAME or headers.NAME."
                )
        self._by = [part.split(".") for part in by]
        self._ignore = [part.split(".") for part in ignore]
        self._last_only = last_only
        self._sides: tuple[dict[bytes, list[bytes]], dict[bytes, list[bytes]]] = ({}, {})
        self._counts = [0, 0]

    def packed(self, record: Record[Any]) -> PackedRecord:
        """A record, as it is compared."""
        value = record.value
        for path in self._ignore:
            value = _without(value, path)
        identity = _encode([_part_of(record, path) for path in self._by])
        return PackedRecord(record.time, identity, _encode(value))

    def add(self, is_right: bool, records: Iterable[PackedRecord], room: DiffRoom) -> None:
        """Take records of one side, in their order.

        Raises:
            ConfigError: there are too many.
        """
        side = self._sides[is_right]
        for record in records:
            before = side.get(record.identity)
            if before is None:
                room.take(record)
                side[record.identity] = [record.value]
            elif self._last_only:
                before[0] = record.value
            else:
                room.take(record)
                before.append(record.value)
            self._counts[is_right] += 1

    def report(self, shown: int = 10) -> LogDiffReport:
        """What differs; `shown` differences at most are told one by one."""
        left, right = self._sides
        found = [0, 0, 0, 0]
        differences: list[LogDifference] = []
        for identity in {**left, **right}:
            ours, theirs = left.get(identity), right.get(identity)
            what = 0 if ours == theirs else 3 if ours is None else 2 if theirs is None else 1
            found[what] += 1
            if what and len(differences) < shown:
                differences.append(_difference(identity, ours or [], theirs or []))
        return LogDiffReport(
            left_records=self._counts[0],
            right_records=self._counts[1],
            same=found[0],
            different=found[1],
            only_left=found[2],
            only_right=found[3],
            differences=differences,
        )


def _difference(identity: bytes, ours: list[bytes], theirs: list[bytes]) -> LogDifference:
    pairs = enumerate(zip_longest(ours, theirs))
    at, (left, right) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
    return LogDifference(
        identity=_decode(identity),
        at=at,
        left=None if left is None else _decode(left),
        right=None if right is None else _decode(right),
        has_left=left is not None,
        has_right=right is not None,
    )


def _part_of(record: Record[Any], path: list[str]) -> Any:
    found: Any = getattr(record, path[0])
    for name in path[1:]:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _without(value: Any, path: list[str]) -> Any:
    """A copy of the value without the part that the path leads to."""
    if not isinstance(value, Mapping) or path[0] not in value:
        return value
    rest = {name: one for name, one in value.items() if name != path[0]}
    if len(path) > 1:
        rest[path[0]] = _without(value[path[0]], path[1:])
    return rest
