"""Sessions: windows that grow with their records, and merge when a record joins two of them. Pure.

What is merged does not depend on the order of the records: a session is the union of its records' `[time, time + gap)`, wherever
those overlap. A session that has changed its bounds is another window than before, and counts its results anew.
"""

from __future__ import annotations

from collections import defaultdict
from operator import itemgetter
from typing import Any

from mycelia.flow.aggregations import Aggregation
from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.emission import Emission
from mycelia.flow.panes import NOTHING, Pane, told_panes
from mycelia.flow.results import OpenWindow, WindowSpan
from mycelia.flow.state import StoreReader
from mycelia.flow.timed_windows import TimedWindows
from mycelia.flow.windows import SessionWindows

__all__ = ["GrowingSession", "MergingWindows", "open_sessions"]

CLOSING, PERIOD = 0, 1


class GrowingSession:
    """A session of a key: its bounds, what a pane of any window holds, and the time of the timer that stands for it."""

    __slots__ = ("end", "pane", "start", "timer_at")

    def __init__(self, start: int, end: int, pane: Pane, timer_at: int | None = None) -> None:
        self.start = start
        self.end = end
        self.pane = pane
        self.timer_at = timer_at


def _plain(sessions: list[GrowingSession]) -> list[Any]:
    return [[one.start, one.end, one.pane.plain(), one.timer_at] for one in sessions]


def _restored(plain: list[Any]) -> list[GrowingSession]:
    return [GrowingSession(start, end, Pane.restored(pane), at) for start, end, pane, at in plain]


def open_sessions(
    aggregation: Aggregation[Any, Any], plain: Any, most: int
) -> tuple[list[OpenWindow], int]:
    """The open sessions in what is kept of a key: `told_panes()`."""
    sessions = _restored(plain)
    return told_panes(((one.start, one.end, one.pane) for one in sessions), aggregation, most)


class MergingWindows(TimedWindows[list[GrowingSession]]):
    """Sessions.

    A session has one timer. If it has grown when that fires, it gets another at its new end: a timer for each gap, not for each batch.
    """

    def __init__(
        self,
        name: str,
        kind: SessionWindows,
        aggregation: Aggregation[Any, Any],
        emission: Emission,
        lateness_ms: int,
        store: StoreReader | None = None,
    ) -> None:
        super().__init__(name, aggregation, emission, lateness_ms, store, _plain, _restored)
        self._gap_ms = kind.gap_ms

    # --- records come --------------------------------------------------------------------------------

    def process(self, port: int, batch: ColumnBatch) -> None:
        assert batch.keys is not None
        by_key: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
        for key, time, value in zip(batch.keys, batch.times, batch.values, strict=True):
            by_key[key].append((time, value))
        live = self._state.load(by_key)
        touched = []
        for key, records in by_key.items():
            records.sort(key=itemgetter(0))
            sessions = live.get(key) or []
            grown = []
            for run in self._runs(records):
                joined = self._joined(run, sessions)
                try:
                    grown.append(self._take(key, run, sessions, joined))
                except BaseException as exc:  # noqa: BLE001  raised, or told
                    values = [value for _, value in run]
                    accumulators = [one.pane.accumulator for one in joined]
                    held = [one for one in accumulators if one is not NOTHING]
                    self.fail_group(exc, batch, key, values, self._aggregation, held)
                    break  # with this key
            if sessions:
                live[key] = sessions
                touched.append(key)
            for session in grown:
                if session in sessions:  # and not merged into another since
                    self._after_records(key, session)
        self._state.touch(touched)
        self._flush()

    def _runs(self, records: list[tuple[int, Any]]) -> list[list[tuple[int, Any]]]:
        """Sorted records, split where a gap lies between them."""
        runs = [[records[0]]]
        for record in records[1:]:
            if record[0] - runs[-1][-1][0] < self._gap_ms:
                runs[-1].append(record)
            else:
                runs.append([record])
        return runs

    def _span(self, run: list[tuple[int, Any]]) -> tuple[int, int]:
        """From the first record of a run to where the gap behind its last one ends."""
        return run[0][0], run[-1][0] + self._gap_ms

    def _joined(
        self, run: list[tuple[int, Any]], sessions: list[GrowingSession]
    ) -> list[GrowingSession]:
        """The sessions that a run of records belongs to."""
        start, end = self._span(run)
        return [one for one in sessions if one.start < end and start < one.end]

    def _take(
        self,
        key: Any,
        run: list[tuple[int, Any]],
        sessions: list[GrowingSession],
        joined: list[GrowingSession],
    ) -> GrowingSession | None:
        """Let a run of records into the sessions that it joins. All stay sorted; returns the one they are in, None if they are too late."""
        start, end = self._span(run)
        bounds = (
            min([start, *(one.start for one in joined)]),
            max([end, *(one.end for one in joined)]),
        )
        if bounds[1] + self._lateness_ms <= self.watermark:
            for time, value in run:
                missed = (WindowSpan(time, time + self._gap_ms),)
                self._late.add(key, value, time, self.watermark, missed)
            return None
        part = self._aggregation.of([value for _, value in run])
        if not joined:
            session = GrowingSession(start, end, Pane(part, len(run)))
            sessions.append(session)
        else:
            session = self._merged(joined, bounds)
            pane = session.pane
            held = pane.accumulator
            pane.accumulator = part if held is NOTHING else self._aggregation.merge(held, part)
            pane.fresh += len(run)
            sessions[:] = [one for one in sessions if one not in joined] + [session]
        sessions.sort(key=lambda one: one.start)
        return session

    def _merged(self, joined: list[GrowingSession], bounds: tuple[int, int]) -> GrowingSession:
        first, *others = joined
        pane = first.pane
        for other in (one.pane for one in others):
            if pane.accumulator is NOTHING:
                pane.accumulator = other.accumulator
            elif other.accumulator is not NOTHING:
                pane.accumulator = self._aggregation.merge(pane.accumulator, other.accumulator)
            pane.fresh += other.fresh
            pane.told += other.told
        if (first.start, first.end) != bounds:
            pane.index = 0
            pane.is_closed = False
        timers = [one.timer_at for one in joined if one.timer_at is not None]
        return GrowingSession(*bounds, pane, min(timers, default=None))

    def _stand_for(self, key: Any, session: GrowingSession, time: int) -> None:
        """A timer at `time` or, if there is one already, before: it asks anew."""
        if session.timer_at is None or session.timer_at > time:
            session.timer_at = time
            self._timers.set(time, (CLOSING, key))

    def _after_records(self, key: Any, session: GrowingSession) -> None:
        pane, end = session.pane, session.end
        if end > self.watermark:
            self._stand_for(key, session, end)
            if self._early_count is not None and pane.fresh >= self._early_count:
                self._results.tell(key, session.start, end, pane, "early", False)
            if self._period is not None:
                self._plan_period(key, session)
        else:
            self._stand_for(key, session, end + self._lateness_ms)
            if pane.fresh >= self._late_count:
                pane.is_closed = True
                self._results.tell(key, session.start, end, pane, "late", False)

    def _plan_period(self, key: Any, session: GrowingSession) -> None:
        assert self._period is not None
        period = self._period.period_ms
        if self._period.clock == "event":
            timers, now = self._timers, max(self.watermark, session.start)
        else:
            timers, now = self._wall, self._now_ms
        timers.set(now - now % period + period, (PERIOD, key))

    # --- time comes by -------------------------------------------------------------------------------

    def _fire(self, due: list[tuple[int, Any]]) -> None:
        live = self._state.load(dict.fromkeys(key for _, (_, key) in due))
        for time, (what, key) in due:
            sessions = live.get(key)
            if sessions is None:
                continue
            for session in list(sessions):
                if what == PERIOD:
                    self._fire_period(key, session, time)
                elif session.timer_at is not None and session.timer_at <= time:
                    session.timer_at = None
                    self._ask(key, session, sessions, time)
            if not sessions:
                del live[key]
            self._state.touch([key])

    def _fire_period(self, key: Any, session: GrowingSession, time: int) -> None:
        """One timer is of all sessions of a key: also of one that begins later, or was over before it began."""
        assert self._period is not None
        pane, start, end = session.pane, session.start, session.end
        is_of_events = self._period.clock == "event"
        is_open = start < time < end if is_of_events else end > self.watermark
        if is_open and pane.fresh and not pane.is_closed:
            self._results.tell(key, start, end, pane, "early", False)

    def _ask(
        self, key: Any, session: GrowingSession, sessions: list[GrowingSession], time: int
    ) -> None:
        """What has become of a session by `time`: it has grown, it closes, or it is to be forgotten."""
        pane, end = session.pane, session.end
        gone = end + self._lateness_ms
        if end > time:
            self._stand_for(key, session, end)
        elif time == end and not pane.is_closed:  # one that began after its end is late, and waits
            pane.is_closed = True
            self._results.tell(key, session.start, end, pane, "on time", gone == end)
            if gone > end:
                self._stand_for(key, session, gone)
            else:
                sessions.remove(session)
        elif time < gone:
            self._stand_for(key, session, gone)
        else:
            if pane.fresh:
                self._results.tell(key, session.start, end, pane, "late", True)
            sessions.remove(session)
