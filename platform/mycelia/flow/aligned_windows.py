"""Tumbling and hopping windows over whole batches: the engine's hot path. Pure.

A batch is split into slices, stretches of time that lie in each window as a whole or not at all, and by key; each group becomes
one accumulator, which is merged into each of its windows. So a record is touched once, however many windows it is in, and a
window's state once for each batch. `benchmarks/flow.py` measures it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mycelia.flow.aggregations import Aggregation
from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.emission import Emission
from mycelia.flow.panes import NOTHING, Pane, told_panes
from mycelia.flow.results import OpenWindow, WindowSpan
from mycelia.flow.state import StoreReader
from mycelia.flow.timed_windows import TimedWindows
from mycelia.flow.windows import HoppingWindows

__all__ = ["AlignedWindows", "open_aligned"]

Panes = dict[int, Pane]
"""The open windows of a key, by their starts."""

CLOSING, PERIOD = 0, 1
"""What a timer is for: the window's end, or that of its lateness; a result between."""


def _by_start(item: tuple[int, Any]) -> int:
    return item[0]


def _held_by(panes: Panes, starts: list[int]) -> list[Any]:
    """The accumulators of those windows that are open, and have one."""
    held = [panes[start].accumulator for start in starts if start in panes]
    return [one for one in held if one is not NOTHING]


def _plain(panes: Panes) -> list[Any]:
    return [[start, pane.plain()] for start, pane in panes.items()]


def _restored(plain: list[Any]) -> Panes:
    return {start: Pane.restored(pane) for start, pane in plain}


def open_aligned(
    kind: HoppingWindows, aggregation: Aggregation[Any, Any], plain: Any, most: int
) -> tuple[list[OpenWindow], int]:
    """The open windows in what is kept of a key: `told_panes()`."""
    panes = _restored(plain).items()
    return told_panes(
        ((start, start + kind.size_ms, pane) for start, pane in panes), aggregation, most
    )


class AlignedWindows(TimedWindows[Panes]):
    """Tumbling and hopping windows."""

    def __init__(
        self,
        name: str,
        kind: HoppingWindows,
        aggregation: Aggregation[Any, Any],
        emission: Emission,
        lateness_ms: int,
        store: StoreReader | None = None,
    ) -> None:
        super().__init__(name, aggregation, emission, lateness_ms, store, _plain, _restored)
        self._kind = kind
        self._slice_ms = kind.slice_ms()

    # --- records come --------------------------------------------------------------------------------

    def process(self, port: int, batch: ColumnBatch) -> None:
        assert batch.keys is not None
        size = self._kind.size_ms
        gone = (
            self.watermark - self._lateness_ms - size
        )  # what began then or before is closed for good
        of, merge, copy = self._aggregation.of, self._aggregation.merge, self._aggregation.copy
        stirred: dict[tuple[Any, int], Pane] = {}  # windows that may give a result at once
        spent: set[Any] = set()  # keys that have failed
        for slice_start, groups in sorted(self._grouped(batch).items(), key=_by_start):
            starts = self._kind.starts(slice_start)
            if starts and starts[0] <= gone:
                self._note_late(batch, slice_start, [one for one in starts if one <= gone])
                starts = [one for one in starts if one > gone]
            if not starts:
                continue
            live = self._state.load(groups)
            self._state.touch(groups)
            opened: list[tuple[Any, int]] = []
            is_stirring = self._early_count is not None or starts[0] + size <= self.watermark
            for key, records in groups.items():
                if spent and key in spent:
                    continue
                try:
                    part = of(records)
                    panes = live.get(key)
                    if panes is None:
                        panes = live[key] = {}
                    for start in starts:
                        own = part if len(starts) == 1 else copy(part)  # as `merge` may change it
                        pane = panes.get(start)
                        if pane is None:
                            pane = panes[start] = Pane(own, len(records))
                            opened.append((key, start))
                        else:
                            before = pane.accumulator
                            pane.accumulator = own if before is NOTHING else merge(before, own)
                            pane.fresh += len(records)
                        if is_stirring:
                            stirred[key, start] = pane
                except BaseException as exc:  # noqa: BLE001  raised, or told
                    of_before = [one for one in starts if (key, one) not in opened]
                    held = _held_by(live.get(key, {}), of_before)
                    self.fail_group(exc, batch, key, records, self._aggregation, held)
                    spent.add(key)
            for key, start in opened:
                self._open(key, start)
            if self._period is not None:
                self._plan_periods(groups, starts)
        if stirred:
            self._tell_counts(stirred)
        self._flush()

    def _grouped(self, batch: ColumnBatch) -> dict[int, dict[Any, list[Any]]]:
        """The records by slice and key, each list in order of arrival. Hot: the only loop over records."""
        times, keys = batch.times, batch.keys
        assert keys is not None
        step, offset = self._slice_ms, self._kind.offset_ms
        earliest, latest = batch.span
        first = earliest - (earliest - offset) % step
        if latest < first + step:
            groups: dict[Any, list[Any]] = defaultdict(list)
            for key, value in zip(keys, batch.values, strict=True):
                groups[key].append(value)
            return {first: groups}
        slices: dict[int, dict[Any, list[Any]]] = {}
        for time, key, value in zip(times, keys, batch.values, strict=True):
            start = time - (time - offset) % step
            if start not in slices:
                slices[start] = defaultdict(list)
            slices[start][key].append(value)
        return slices

    def _open(self, key: Any, start: int) -> None:
        end = start + self._kind.size_ms
        self._timers.set(
            end if end > self.watermark else end + self._lateness_ms, (CLOSING, key, start)
        )

    def _note_late(self, batch: ColumnBatch, slice_start: int, gone: list[int]) -> None:
        assert batch.keys is not None
        missed = tuple(WindowSpan(start, start + self._kind.size_ms) for start in gone)
        slice_end = slice_start + self._slice_ms
        for key, time, value in zip(batch.keys, batch.times, batch.values, strict=True):
            if slice_start <= time < slice_end:
                self._late.add(key, value, time, self.watermark, missed)

    def _tell_counts(self, stirred: dict[tuple[Any, int], Pane]) -> None:
        """Results because enough records have come: early ones, and late ones."""
        size = self._kind.size_ms
        early, late = self._early_count, self._late_count
        for (key, start), pane in stirred.items():
            end = start + size
            if end <= self.watermark:
                if pane.fresh >= late:
                    self._tell(key, start, pane, is_late=True)
            elif early is not None and pane.fresh >= early:
                self._results.tell(key, start, end, pane, "early", False)

    def _tell(
        self, key: Any, start: int, pane: Pane, *, is_late: bool, is_final: bool = False
    ) -> None:
        pane.is_closed = True
        end = start + self._kind.size_ms
        self._results.tell(key, start, end, pane, "late" if is_late else "on time", is_final)

    def _plan_periods(self, keys: Any, starts: list[int]) -> None:
        assert self._period is not None
        period = self._period.period_ms
        for start in starts:
            end = start + self._kind.size_ms
            if self._period.clock == "event":
                timers, now = self._timers, max(self.watermark, start)
            else:
                timers, now = self._wall, self._now_ms
            at = now - now % period + period
            if end > self.watermark and (at < end or timers is self._wall):
                for key in keys:
                    timers.set(at, (PERIOD, key, start))

    # --- time comes by -------------------------------------------------------------------------------

    def _fire(self, due: list[tuple[int, Any]]) -> None:
        live = self._state.load(dict.fromkeys(key for _, (_, key, _) in due))
        lateness = self._lateness_ms
        touched = []
        for time, (what, key, start) in due:
            panes = live.get(key)
            pane = panes.get(start) if panes is not None else None
            if panes is None or pane is None:
                continue  # a result of between, whose window is gone
            touched.append(key)
            end = start + self._kind.size_ms
            if what == PERIOD:
                if pane.fresh and not pane.is_closed:
                    self._results.tell(key, start, end, pane, "early", False)
            elif time == end and not pane.is_closed:
                self._tell(key, start, pane, is_late=False, is_final=not lateness)
                if lateness:
                    self._timers.set(end + lateness, (CLOSING, key, start))
                else:
                    self._forget(key, start)
            else:
                if pane.fresh:
                    self._tell(key, start, pane, is_late=True, is_final=True)
                self._forget(key, start)
        self._state.touch(touched)

    def _forget(self, key: Any, start: int) -> None:
        panes = self._state.live[key]
        del panes[start]
        if not panes:
            del self._state.live[key]
