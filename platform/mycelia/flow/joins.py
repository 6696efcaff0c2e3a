"""Joins of two streams by their keys: with a table, as of a time, within an interval. Functions with state, for `Processing`. Pure.

Records of the left come in by port 0, those of the right by port 1. A watermark of W says that all before W has come, so what may
still be equal to a time has come when W is one more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, Final, Literal

from mycelia.flow.operators import SIDE
from mycelia.flow.processing import KeyContext
from mycelia.flow.results import LateRecord, WindowResult
from mycelia.flow.tables import is_retraction, takes_back

__all__ = ["AsOfJoin", "IntervalJoin", "JoinKind", "TableJoin"]

JoinKind = Literal["inner", "left", "full"]
"""Which records are given that find no partner: none, those of the left, those of both sides."""

LEFT: Final = 0
RIGHT: Final = 1

_time_of = itemgetter(0)


class TableJoin:
    """Each left record with the newest right one that has come before it, and has not been taken back."""

    def __init__(self, how: JoinKind) -> None:
        self._keeps_left = how == "left"

    def make(self) -> list[Any]:
        return []

    def is_kept(self, state: list[Any]) -> bool:
        return bool(state)

    def on_record(
        self, context: KeyContext[Any, list[Any]], port: int, value: Any
    ) -> Iterable[Any]:
        """The state is the newest right record, as its time and value; nothing while there is none."""
        if port == RIGHT:
            if is_retraction(value):
                if context.state and takes_back(value, context.state[1]):
                    context.state = []
            elif not context.state or context.time_ms >= context.state[0]:
                context.state = [context.time_ms, value]
        elif context.state:
            yield value, context.state[1]
        elif self._keeps_left:
            yield value, None
        else:
            context.count("unmatched")

    def on_timer(self, context: KeyContext[Any, list[Any]], name: str) -> Iterable[Any]:
        return ()


class AsOfJoin:
    """Each left record with the right one that was the newest at its event time.

    A left record waits until all has come that may be its partner. Right ones are kept until they cannot be asked for any more:
    the newest of each key for good, unless there is a tolerance.
    """

    def __init__(self, how: JoinKind, tolerance_ms: int | None, lateness_ms: int) -> None:
        self._keeps_left = how == "left"
        self._tolerance_ms = tolerance_ms
        self._lateness_ms = lateness_ms

    def make(self) -> dict[str, list[Any]]:
        return {"left": [], "right": []}

    def is_kept(self, state: dict[str, list[Any]]) -> bool:
        return bool(state["left"] or state["right"])

    def on_record(
        self, context: KeyContext[Any, dict[str, list[Any]]], port: int, value: Any
    ) -> Iterable[Any]:
        time, watermark = context.time_ms, context.watermark_ms
        if port == RIGHT:
            if time < watermark:
                context.count("late_right")  # lefts that it belongs to may have gone without it
            if is_retraction(value):
                self._take_back(context, value)
                return ()
            rights = context.state["right"]
            rights.insert(bisect_right(rights, time, key=_time_of), [time, value])
            if self._tolerance_ms is not None:
                context.set_timer(time + self._tolerance_ms + self._lateness_ms + 1, "prune")
            self._prune(context)
        elif time + self._lateness_ms < watermark:
            _tell_late(context, value)
        elif time < watermark:
            self._join(context, time, value)
        else:
            context.state["left"].append([time, value])
            context.set_timer(time + 1, "join")
        return ()

    def on_timer(self, context: KeyContext[Any, dict[str, list[Any]]], name: str) -> Iterable[Any]:
        waiting = context.state["left"]
        ready = [one for one in waiting if one[0] < context.time_ms]
        if ready:
            context.state["left"] = [one for one in waiting if one[0] >= context.time_ms]
        for time, value in ready:
            self._join(context, time, value)
        self._prune(context)
        return ()

    def _take_back(
        self, context: KeyContext[Any, dict[str, list[Any]]], value: WindowResult[Any, Any]
    ) -> None:
        rights = context.state["right"]
        context.state["right"] = [one for one in rights if not takes_back(value, one[1])]

    def _join(self, context: KeyContext[Any, dict[str, list[Any]]], time: int, value: Any) -> None:
        rights = context.state["right"]
        at = bisect_right(rights, time, key=_time_of) - 1
        if at >= 0 and (self._tolerance_ms is None or time - rights[at][0] <= self._tolerance_ms):
            context.give((value, rights[at][1]), time)
        elif self._keeps_left:
            context.give((value, None), time)
        else:
            context.count("unmatched")

    def _prune(self, context: KeyContext[Any, dict[str, list[Any]]]) -> None:
        """Let go of right records that no left one can ask for: older than the newest of before all that is still to come. That which is
        of the same time may still be taken back."""
        rights = context.state["right"]
        oldest = context.watermark_ms - self._lateness_ms
        waiting = min((one[0] for one in context.state["left"]), default=oldest)
        oldest = min(oldest, waiting)
        keep = max(bisect_left(rights, oldest, key=_time_of) - 1, 0)
        if self._tolerance_ms is not None:
            while keep < len(rights) and rights[keep][0] + self._tolerance_ms < oldest:
                keep += 1
        if keep:
            context.state["right"] = rights[keep:]


class IntervalJoin:
    """Pairs whose right record is at most `before` earlier and at most `after` later than the left one.

    A pair is given as its second record comes, at the later of their times; a record without any, where it is asked for, when none can
    come any more, at its own.
    """

    def __init__(self, how: JoinKind, before_ms: int, after_ms: int, lateness_ms: int) -> None:
        self._keeps = (how != "inner", how == "full")
        self._reach = ((before_ms, after_ms), (after_ms, before_ms))
        """Of each side, how much earlier and later its partners may be."""
        self._lateness_ms = lateness_ms

    def make(self) -> list[list[list[Any]]]:
        """Of each side its records: time, value, and whether it has been in a pair."""
        return [[], []]

    def is_kept(self, state: list[list[list[Any]]]) -> bool:
        return bool(state[LEFT] or state[RIGHT])

    def on_record(
        self, context: KeyContext[Any, list[list[list[Any]]]], port: int, value: Any
    ) -> Iterable[Any]:
        time = context.time_ms
        if time + self._lateness_ms < context.watermark_ms:
            _tell_late(context, value)
            return ()
        before, after = self._reach[port]
        mine: list[Any] = [time, value, False]
        for other in context.state[1 - port]:
            if time - before <= other[0] <= time + after:
                mine[2] = other[2] = True
                pair = (value, other[1]) if port == LEFT else (other[1], value)
                context.give(pair, max(time, other[0]))
        context.state[port].append(mine)
        context.set_timer(time + after + self._lateness_ms + 1)
        return ()

    def on_timer(self, context: KeyContext[Any, list[list[list[Any]]]], name: str) -> Iterable[Any]:
        for port, records in enumerate(context.state):
            ends = context.time_ms - self._reach[port][1] - self._lateness_ms
            gone = [one for one in records if one[0] < ends]
            if gone:
                context.state[port] = [one for one in records if one[0] >= ends]
            for time, value, is_matched in gone:
                if is_matched:
                    continue
                if self._keeps[port]:
                    context.give((value, None) if port == LEFT else (None, value), time)
                else:
                    context.count("unmatched")
        return ()


def _tell_late(context: KeyContext[Any, Any], value: Any) -> None:
    context.count("late")
    context.give(LateRecord(context.key, value, context.time_ms, context.watermark_ms), port=SIDE)
