"""Steps without state, fused into one operator; where streams meet and part; where event time comes from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from datetime import datetime
from itertools import chain, compress, repeat
from math import isfinite, isnan
from typing import Any

from mycelia.flow.column_batch import (
    BEGINNING_OF_TIME,
    END_OF_TIME,
    ColumnBatch,
    Spread,
)
from mycelia.flow.equal_keys import has_no_equal, without_equals
from mycelia.flow.operators import MAIN, SIDE, Operator
from mycelia.flow.state import Changes, StoreReader
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.flow.watermarks import NOTHING_EVER_MS, PartitionWatermarks, Silence
from mycelia.logs.record_shape import YEAR_MS, impossible_time, latest_possible

__all__ = ["Branching", "FlowStep", "Fused", "Merging", "Stamping", "Watching"]


class FlowStep:
    """One of the steps that are fused: what kind it is, its name, and its function of a record. That of a `flat_map` gives a list."""

    __slots__ = ("function", "kind", "name")

    def __init__(self, kind: str, name: str, function: Callable[[Any], Any]) -> None:
        self.kind = kind
        self.name = name
        self.function = function


class Fused(Operator):
    """Steps without state, one after the other over the whole batch: `map`, `filter`, `flat_map`, `key_by`.

    Each is a loop in C over one column.
    """

    def __init__(self, steps: list[FlowStep]) -> None:
        super().__init__(" → ".join(step.name for step in steps))
        self._steps = steps

    def process(self, port: int, batch: ColumnBatch) -> None:
        name = self.name
        for step in self._steps:
            self.name = step.name
            made, batch = self.applied(step.function, batch)
            if not made:
                break
            if step.kind == "map":
                batch = batch.with_values(made)
            elif step.kind == "key_by":
                batch = self._keyed(step, made, batch)
            elif step.kind == "filter":
                batch = self._filtered(step, made, batch)
            else:
                batch = _spread(made, batch)
            if not len(batch):
                break
        self.name = name
        if len(batch):
            self.out.append((MAIN, batch))

    def _filtered(self, step: FlowStep, made: list[Any], batch: ColumnBatch) -> ColumnBatch:
        """Those of which it is true. What has no truth (an array, a missing value) is found here, by the record."""
        try:
            return batch.only(made)
        except BaseException:  # noqa: BLE001  raised below, with its record
            made, batch = self.applied(_truth_of(step.function), batch)
            return batch.only(made)

    def _keyed(self, step: FlowStep, keys: list[Any], batch: ColumnBatch) -> ColumnBatch:
        """Those records that have a key. One that cannot be a key is found here, by name, and not in a window."""
        batch = batch.with_keys(keys)
        try:
            distinct = set(keys)
        except BaseException:  # noqa: BLE001  raised below, with its record
            keys, batch = self.applied(_hashable_of(step.function), batch)
            distinct = set(keys)
        if None not in distinct and not without_equals(distinct):
            return batch
        kept = [key is not None and not has_no_equal(key) for key in keys]
        for position, is_kept in enumerate(kept):
            if not is_kept:
                self.reject(batch, position, f"{step.name} gives it no key ({keys[position]})")
        return batch.only(kept)


def _spread(made: list[Any], batch: ColumnBatch) -> ColumnBatch:
    """Each record's own records, one after the other."""
    counts = list(map(len, made))
    keys, trail = batch.keys, batch.trail
    return ColumnBatch(
        list(chain.from_iterable(map(repeat, batch.times, counts))),
        list(chain.from_iterable(made)),
        None if keys is None else list(chain.from_iterable(map(repeat, keys, counts))),
        batch.channel,
        None if trail is None else (*trail, Spread(counts)),
    )


def _truth_of(function: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def is_true(value: Any) -> bool:
        return bool(function(value))

    return is_true


def _hashable_of(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As `function`, and raises where what it gives cannot be a key."""

    def key_of(value: Any) -> Any:
        key = function(value)
        hash(key)
        return key

    return key_of


class Merging(Operator):
    """Several streams as one; the engine's turn gives them in order of their ports."""

    def process(self, port: int, batch: ColumnBatch) -> None:
        self.out.append((MAIN, batch))


class Branching(Operator):
    """Those that a function is true of, and by the other port the rest."""

    def __init__(self, name: str, function: Callable[[Any], Any]) -> None:
        super().__init__(name)
        self._is_taken = _truth_of(function)

    def process(self, port: int, batch: ColumnBatch) -> None:
        taken, batch = self.applied(self._is_taken, batch)
        for to, kept in ((MAIN, taken), (SIDE, [not one for one in taken])):
            if any(kept):
                self.out.append((to, batch.only(kept)))


class Watching(Operator):
    """Takes the event times as they are, and tells from them how far event time has come in each partition; or, of a relay, is told."""

    def __init__(
        self,
        name: str,
        channels: list[Hashable],
        disorder_ms: int,
        idle_ms: int | None,
        store: StoreReader | None = None,
        *,
        is_relay: bool = False,
        ahead_ms: int = YEAR_MS,
    ) -> None:
        super().__init__(name)
        self.channels = channels
        self._ahead_ms = ahead_ms
        self._is_relay = is_relay
        empty_ms = None if is_relay else NOTHING_EVER_MS
        self._partitions = PartitionWatermarks(channels, disorder_ms, idle_ms, empty_ms)
        self._saved: bytes | None = None
        self._now_ms = 0
        if store is not None:
            (self._saved,) = store.read(name, [b""])
            if self._saved is not None:
                self._partitions.restore(decode_state(self._saved))

    def tick(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def process(self, port: int, batch: ColumnBatch) -> None:
        if not self._is_relay:
            batch = self._with_possible_times(batch)
            if not len(batch):
                return
            self._partitions.heard(batch.channel, batch.span[1], self._now_ms)
        self.out.append((MAIN, batch))

    def _with_possible_times(self, batch: ColumnBatch) -> ColumnBatch:
        """Those records whose times may be true. A single one of a wrong year would make all others late."""
        times, ahead = batch.times, self._ahead_ms
        before = self._partitions.greatest(batch.channel)
        earliest, latest = batch.span
        limit = (earliest if before is None else before) + ahead
        if earliest >= 0 and latest <= min(limit, latest_possible(self._now_ms, ahead)):
            return batch
        kept: list[bool] = []
        for position, time in enumerate(times):
            reason = self._impossible(time, before)
            kept.append(reason is None)
            if reason is None:
                before = time if before is None else max(before, time)
            else:
                self.reject(batch, position, reason)
        return batch.only(kept)

    def _impossible(self, time: int, before: int | None) -> str | None:
        """What is wrong with an event time, after those up to `before`."""
        return impossible_time(time, self._now_ms, self._ahead_ms, "event_time(ahead=)", before)

    @property
    def silence(self) -> Silence:
        """Of all partitions, when it was last asked how far event time has come."""
        return self._partitions.silence

    def relay(self, channel: Hashable, watermark: int, silence: Silence = "") -> None:
        """A partition's watermark, and whether it is silent, as those say who write to it."""
        self._partitions.relayed(channel, watermark, silence)

    def end(self, channel: Hashable) -> None:
        """Nothing more will come from a partition."""
        self._partitions.ended(channel)

    def watch(self) -> int:
        """The watermark that goes to what comes after."""
        return self._partitions.advance(self._now_ms)

    def take_changes(self, changes: Changes) -> None:
        saved = encode_state(self._partitions.plain())
        if saved != self._saved:
            self._saved = saved
            changes.setdefault(self.name, {})[b""] = saved


class _NoTime(Exception):
    """What should be an event time is none: None, NaN."""


class Stamping(Watching):
    """Takes the event time of each record from what it says, and watches it.

    Args:
        function: gives a moment in a time zone, or, with `unit_ms`, a number.
        unit_ms: milliseconds in a unit of those numbers: 1000 for seconds since 1970.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Any], Any],
        unit_ms: int,
        channels: list[Hashable],
        disorder_ms: int,
        idle_ms: int | None,
        store: StoreReader | None = None,
        ahead_ms: int = YEAR_MS,
    ) -> None:
        super().__init__(name, channels, disorder_ms, idle_ms, store, ahead_ms=ahead_ms)
        self._function = function
        self._unit_ms = unit_ms

    def process(self, port: int, batch: ColumnBatch) -> None:
        self._stamp(port, *self.applied(self._function, batch))

    def _stamp(self, port: int, said: list[Any], kept: ColumnBatch) -> None:
        times: list[int] = []
        if self._unit_ms == 1 and set(map(type, said)) == {int}:
            times = said
        else:
            try:
                times.extend(map(self._milliseconds, said))
            except _NoTime:
                self._stamp(port, *self._with_times(said, kept))
                return
            except BaseException as exc:
                if not self.collects:
                    raise self.fail(exc, kept, len(times)) from exc
                self._stamp(port, *self.applied(self._time_of, kept))
                return
        if times:
            super().process(
                port, ColumnBatch(times, kept.values, kept.keys, kept.channel, kept.trail)
            )

    def _with_times(self, said: list[Any], batch: ColumnBatch) -> tuple[list[Any], ColumnBatch]:
        """What says a time at all, and its records."""
        kept = [one is not None and not (isinstance(one, float) and isnan(one)) for one in said]
        for position, has_time in enumerate(kept):
            if not has_time:
                self.reject(
                    batch, position, f"{self.name} gives it no event time ({said[position]})"
                )
        return list(compress(said, kept)), batch.only(kept)

    def _time_of(self, value: Any) -> Any:
        """As the function, and raises over what is no time; not having one is for `_with_times()`."""
        said = self._function(value)
        with suppress(_NoTime):
            self._milliseconds(said)
        return said

    def _milliseconds(self, said: Any) -> int:
        if isinstance(said, datetime):
            if said.utcoffset() is None:
                raise ValueError(
                    f"{said!r} is no moment: it is in no time zone. Give it one, or numbers since 1970."
                )
            return round(said.timestamp() * 1000)
        if isinstance(said, int) and not isinstance(said, bool):
            return said * self._unit_ms
        if isinstance(said, float):
            exact = said * self._unit_ms
            if isfinite(exact):
                return round(exact)
            if exact > 0:
                return END_OF_TIME
            if exact < 0:
                return BEGINNING_OF_TIME
        if said is None or isinstance(said, float):
            raise _NoTime
        raise TypeError(
            f"{said!r:.60} is no event time. Expected a datetime in a time zone, or a number since 1970."
        )
