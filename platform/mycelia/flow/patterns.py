"""Records that follow each other within a time, and records that are repeated. Functions with state, for `Processing`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, Final

from mycelia.flow.operators import SIDE
from mycelia.flow.processing import KeyContext
from mycelia.flow.results import LateRecord

__all__ = ["UNFINISHED", "Deduplication", "Following"]

UNFINISHED: Final = 2
"""The port of what began and did not go on in time."""


class Following:
    """Sequences of records of a key, in order of event time: one for each step, the last at most `within` after the first.

    Others may lie between them. A record is in one sequence at most: it goes on with the oldest that waits for it, and begins one
    only if none does. Records are put in order before they are looked at, so they wait until all before them has come.
    """

    def __init__(self, steps: tuple[Callable[[Any], object], ...], within_ms: int) -> None:
        self._steps = steps
        self._within_ms = within_ms

    def make(self) -> dict[str, list[Any]]:
        """`waiting`: of those that are to be put in order time, record and for which steps it is true. `begun`: the time of the first, and all so far."""
        return {"waiting": [], "begun": []}

    def is_kept(self, state: dict[str, list[Any]]) -> bool:
        return bool(state["waiting"] or state["begun"])

    def on_record(
        self, context: KeyContext[Any, dict[str, list[Any]]], port: int, value: Any
    ) -> Iterable[Any]:
        time = context.time_ms
        if time < context.watermark_ms:
            context.count("late")
            context.give(LateRecord(context.key, value, time, context.watermark_ms), port=SIDE)
        elif any(true_for := self._true_for(value)):
            context.state["waiting"].append([time, value, true_for])
            context.set_timer(time + 1)
        return ()

    def _true_for(self, value: Any) -> list[bool]:
        """Asked as a record comes, so that one over which a step raises is named, and may be left out."""
        return [bool(step(value)) for step in self._steps]

    def on_timer(self, context: KeyContext[Any, dict[str, list[Any]]], name: str) -> Iterable[Any]:
        state, now = context.state, context.time_ms
        ready = sorted((one for one in state["waiting"] if one[0] < now), key=itemgetter(0))
        state["waiting"] = [one for one in state["waiting"] if one[0] >= now]
        for time, value, *known in ready:
            self._expire(context, time)
            # Those that an earlier version has kept had not been asked about.
            self._take(context, time, value, known[0] if known else self._true_for(value))
        self._expire(context, now)
        return ()

    def _take(
        self,
        context: KeyContext[Any, dict[str, list[Any]]],
        time: int,
        value: Any,
        true_for: list[bool],
    ) -> None:
        begun = context.state["begun"]
        for sequence in begun:
            if true_for[len(sequence[1])]:
                sequence[1].append(value)
                if len(sequence[1]) == len(self._steps):
                    begun.remove(sequence)
                    context.give(sequence[1], time)
                return
        if true_for[0]:
            begun.append([time, [value]])
            context.set_timer(time + self._within_ms + 1)

    def _expire(self, context: KeyContext[Any, dict[str, list[Any]]], time: int) -> None:
        """Give up what can have no further record by `time`."""
        begun = context.state["begun"]
        for sequence in [one for one in begun if one[0] + self._within_ms < time]:
            begun.remove(sequence)
            context.give(sequence[1], sequence[0] + self._within_ms, UNFINISHED)


class Deduplication:
    """The first record of each id; others of a time within `within` of its are dropped, and counted."""

    def __init__(self, id_of: Callable[[Any], Any], within_ms: int) -> None:
        self._id_of = id_of
        self._within_ms = within_ms

    def make(self) -> dict[Any, int | list[int]]:
        """The ids, with the time of the record that was let through; of one that has come again at another time and is remembered still, all of those."""
        return {}

    def is_kept(self, state: dict[Any, int | list[int]]) -> bool:
        return bool(state)

    def on_record(
        self, context: KeyContext[Any, dict[Any, int | list[int]]], port: int, value: Any
    ) -> Iterable[Any]:
        time, one = context.time_ms, self._id_of(value)
        before = _times(context.state.get(one))
        if any(abs(time - other) <= self._within_ms for other in before):
            context.count("repeated")
        else:
            context.state[one] = [*before, time] if before else time
            context.set_timer(time + self._within_ms + 1)
            yield value

    def on_timer(
        self, context: KeyContext[Any, dict[Any, int | list[int]]], name: str
    ) -> Iterable[Any]:
        ends = context.time_ms - self._within_ms
        for one, kept in list(context.state.items()):
            times = _times(kept)
            left = [time for time in times if time >= ends]
            if not left:
                del context.state[one]
            elif len(left) < len(times):
                context.state[one] = left
        return ()


def _times(kept: int | list[int] | None) -> list[int]:
    return kept if isinstance(kept, list) else [] if kept is None else [kept]
