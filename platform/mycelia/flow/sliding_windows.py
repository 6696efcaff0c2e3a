"""Sliding windows: for each event time of a key, what the key had in the `size` up to it. Pure.

State is one accumulator for each event time of a key; a window's is merged from those in it when it gives a result.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from typing import Any

from mycelia.flow.aggregations import Aggregation
from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.emission import Emission
from mycelia.flow.panes import NOTHING, Pane
from mycelia.flow.results import OpenWindow, Timing, WindowSpan
from mycelia.flow.state import StoreReader
from mycelia.flow.timed_windows import TimedWindows
from mycelia.flow.windows import SlidingWindows

__all__ = ["TrailingWindows", "open_trailing"]

CLOSING, FORGETTING, LEAVING = 0, 1, 2
"""What a timer is for, in the order in which they are served at one time: the window of its time closes, is forgotten, and its
records leave the last window that they are in."""


class _Trail:
    """What is kept of a key: its event times in order, the accumulator of each, and the windows that may give results."""

    __slots__ = ("accumulators", "panes", "times")

    def __init__(self) -> None:
        self.times: list[int] = []
        self.accumulators: dict[int, Any] = {}
        self.panes: dict[int, Pane] = {}

    def between(self, first: int, end: int) -> list[int]:
        """The event times from `first` and before `end`."""
        return self.times[bisect_left(self.times, first) : bisect_left(self.times, end)]


def _plain(trail: _Trail) -> list[Any]:
    panes = [[time, pane.plain()] for time, pane in trail.panes.items()]
    return [[[time, trail.accumulators[time]] for time in trail.times], panes]


def _restored(plain: list[Any]) -> _Trail:
    trail = _Trail()
    accumulators, panes = plain
    trail.times = [time for time, _ in accumulators]
    trail.accumulators = dict(accumulators)
    trail.panes = {time: Pane.restored(pane) for time, pane in panes}
    return trail


def _merged(trail: _Trail, aggregation: Aggregation[Any, Any], start: int, time: int) -> Any:
    """The accumulator of the window from `start` to `time`, of its own."""
    first, *others = trail.between(start, time + 1)
    accumulator = aggregation.copy(trail.accumulators[first])
    for other in others:
        accumulator = aggregation.merge(accumulator, trail.accumulators[other])
    return accumulator


def open_trailing(
    kind: SlidingWindows, aggregation: Aggregation[Any, Any], plain: Any, most: int
) -> tuple[list[OpenWindow], int]:
    """The windows in what is kept of a key that may give results still, the latest last; and how many earlier ones are left out."""
    trail = _restored(plain)
    times = sorted(trail.panes)
    told = [
        OpenWindow(
            start_ms=(start := time + 1 - kind.size_ms),
            end_ms=time + 1,
            value=aggregation.result(_merged(trail, aggregation, start, time)),
            is_closed=trail.panes[time].is_closed,
        )
        for time in times[-most:]
    ]
    return told, len(times) - len(told)


def _by_what(timer: tuple[int, Any]) -> int:
    what: int = timer[1][0]
    return what


class TrailingWindows(TimedWindows[_Trail]):
    """Sliding windows."""

    def __init__(
        self,
        name: str,
        kind: SlidingWindows,
        aggregation: Aggregation[Any, Any],
        emission: Emission,
        lateness_ms: int,
        store: StoreReader | None = None,
    ) -> None:
        super().__init__(name, aggregation, emission, lateness_ms, store, _plain, _restored)
        self._size_ms = kind.size_ms

    def process(self, port: int, batch: ColumnBatch) -> None:
        assert batch.keys is not None
        by_key: dict[Any, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for key, time, value in zip(batch.keys, batch.times, batch.values, strict=True):
            by_key[key][time].append(value)
        live = self._state.load(by_key)
        for key, by_time in by_key.items():
            trail = live.get(key) or _Trail()
            touched: dict[int, None] = {}
            for time, records in sorted(by_time.items()):
                try:
                    touched.update(dict.fromkeys(self._take(key, trail, time, records)))
                except BaseException as exc:  # noqa: BLE001  raised, or told
                    held = [trail.accumulators[time]] if time in trail.accumulators else []
                    self.fail_group(exc, batch, key, records, self._aggregation, held)
                    break  # with this key
            if trail.times:
                live[key] = trail
            for time in sorted(touched):
                self._after_records(key, trail, time)
        self._state.touch(by_key)
        self._flush()

    def _take(self, key: Any, trail: _Trail, time: int, records: list[Any]) -> list[int]:
        """Let a key's records of one time in; returns the times of the windows that they are in."""
        is_late = time + 1 + self._lateness_ms <= self.watermark
        if is_late:
            missed = (WindowSpan(time + 1 - self._size_ms, time + 1),)
            for value in records:
                self._late.add(key, value, time, self.watermark, missed)
            if time + self._size_ms + self._lateness_ms <= self.watermark:
                return []
        part = self._aggregation.of(records)
        if time in trail.accumulators:
            held = trail.accumulators[time]
            trail.accumulators[time] = self._aggregation.merge(held, part)
        else:
            trail.accumulators[time] = part
            trail.times.insert(bisect_right(trail.times, time), time)
            self._timers.set(time + self._size_ms + self._lateness_ms, (LEAVING, key, time))
        if not is_late and time not in trail.panes:
            trail.panes[time] = Pane(NOTHING, 0)
            if time + 1 > self.watermark:
                self._timers.set(time + 1, (CLOSING, key, time))
            else:  # it begins after its end: all that it gives is late
                self._timers.set(time + 1 + self._lateness_ms, (FORGETTING, key, time))
        windows = [one for one in trail.between(time, time + self._size_ms) if one in trail.panes]
        for one in windows:
            trail.panes[one].fresh += len(records)
        return windows

    def _after_records(self, key: Any, trail: _Trail, time: int) -> None:
        pane = trail.panes[time]
        if time + 1 <= self.watermark:
            if pane.fresh >= self._late_count:
                pane.is_closed = True
                self._tell(key, trail, time, "late", is_final=False)
        elif self._early_count is not None and pane.fresh >= self._early_count:
            self._tell(key, trail, time, "early", is_final=False)

    def _tell(self, key: Any, trail: _Trail, time: int, timing: Timing, *, is_final: bool) -> None:
        start = time + 1 - self._size_ms
        pane = trail.panes[time]
        try:
            pane.accumulator = _merged(trail, self._aggregation, start, time)
        except BaseException as exc:  # noqa: BLE001  raised, or told
            parts = [trail.accumulators[one] for one in trail.between(start, time + 1)]
            self._results.refuse(exc, key, start, time + 1, pane, timing, is_final, parts)
            return
        self._results.tell(key, start, time + 1, pane, timing, is_final)
        pane.accumulator = NOTHING

    def _fire(self, due: list[tuple[int, Any]]) -> None:
        keys = dict.fromkeys(key for _, (_, key, _) in due)
        live = self._state.load(keys)
        for _, (what, key, time) in sorted(due, key=_by_what):
            trail = live[key]
            if what == CLOSING:
                pane = trail.panes[time]
                if not pane.is_closed:
                    pane.is_closed = True
                    self._tell(key, trail, time, "on time", is_final=not self._lateness_ms)
                if self._lateness_ms:
                    self._timers.set(time + 1 + self._lateness_ms, (FORGETTING, key, time))
                else:
                    del trail.panes[time]
            elif what == FORGETTING:
                if trail.panes[time].fresh:
                    self._tell(key, trail, time, "late", is_final=True)
                del trail.panes[time]
            else:
                trail.times.remove(time)
                del trail.accumulators[time]
                if not trail.times:
                    del live[key]
        self._state.touch(keys)
