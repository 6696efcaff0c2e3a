"""Functions with state: for each record of a key, and for timers that they set. Joins, patterns and deduplication are such functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from mycelia.errors import FlowFunctionError
from mycelia.flow.column_batch import BEGINNING_OF_TIME, END_OF_TIME, ColumnBatch
from mycelia.flow.operators import MAIN, FiredTimer, Operator
from mycelia.flow.state import Changes, KeyedState, StoreReader
from mycelia.flow.state_codec import is_record_class
from mycelia.flow.timer_queue import TimerQueue
from mycelia.flow.user_code import apart_from

__all__ = ["KeyContext", "Processing"]

K = TypeVar("K")
S = TypeVar("S")

OnRecord = Callable[["KeyContext[Any, Any]", int, Any], Iterable[Any]]
"""Of the context, the port that the record came in by, and the record."""

OnTimer = Callable[["KeyContext[Any, Any]", str], Iterable[Any]]
"""Of the context, and the timer's name."""


class KeyContext(Generic[K, S]):
    """What a function with state is given: its key, that key's state, the time, and timers. Good for the call it is given for.

    Attributes:
        key: whose record or timer it is.
        state: of the key; changed in place, or set anew. It is kept with the checkpoint: plain values, a `msgspec.Struct` or a dataclass.
            What of it is given, as a whole or a part, is given as it is then.
        time_ms: event time of the record or timer, milliseconds since 1970. Of a timer of processing time it is the watermark.
        watermark_ms: how far event time has come.
        now_ms: the time on the wall; another in each replay.
    """

    __slots__ = ("_owner", "key", "now_ms", "state", "time_ms", "watermark_ms")

    def __init__(self, owner: Processing) -> None:
        self._owner = owner
        self.key: K
        self.state: S
        self.time_ms = 0
        self.watermark_ms = BEGINNING_OF_TIME
        self.now_ms = 0

    def set_timer(self, at_ms: int, name: str = "") -> None:
        """Be called when event time has come to `at_ms`: at once after this batch, if it has already. The same twice is one.

        Raises:
            TypeError: that is no whole number of milliseconds, or no name.
        """
        _check_timer("set_timer", at_ms, name)
        self._owner.set_timer(self._owner.timers, at_ms, (self.key, name))

    def cancel_timer(self, at_ms: int, name: str = "") -> None:
        """Not be called; nothing, if there is no such timer."""
        self._owner.cancel_timer(self._owner.timers, at_ms, (self.key, name))

    def set_wall_timer(self, at_ms: int, name: str = "") -> None:
        """Be called when the time on the wall has come to `at_ms`. Raises as `set_timer()`."""
        _check_timer("set_wall_timer", at_ms, name)
        self._owner.set_timer(self._owner.wall, at_ms, (self.key, name))

    def cancel_wall_timer(self, at_ms: int, name: str = "") -> None:
        """Not be called; nothing, if there is no such timer."""
        self._owner.cancel_timer(self._owner.wall, at_ms, (self.key, name))

    def clear(self) -> None:
        """Forget the key's state once the call is over. Its timers stay."""
        self._owner.forget()

    def give(self, value: Any, time_ms: int | None = None, port: int = MAIN) -> None:
        """Give a record with a time of its own, or by another port than what is returned."""
        self._owner.give(port, self.time_ms if time_ms is None else time_ms, value)

    def count(self, what: str) -> None:
        """One more of `what`, in the operator's counts."""
        self._owner.counted[what] = self._owner.counted.get(what, 0) + 1


def _check_timer(what: str, at_ms: object, name: object) -> None:
    """Here, with its record: a queue of timers that holds something else fails over another's, and again at each start."""
    if type(at_ms) is not int:
        raise TypeError(
            f"{what}({at_ms!r:.60}): expected whole milliseconds since 1970, as in context.time_ms + 60_000."
        )
    if not isinstance(name, str):
        raise TypeError(f"{what}(…, {name!r:.60}): expected a name, as text.")


class Processing(Operator):
    """Calls a function for each record, in order of arrival, and another for each timer, in order of time.

    Args:
        state: makes the state of a key that has none.
        is_kept: whether a state is worth keeping; the key of another is forgotten.
        gives_apart: whether what is given may be part of the state, which changes later: then a copy is given.
        replaces_states: whether the functions never change a state, but put another in its place: what only was read is not written then.
    """

    def __init__(
        self,
        name: str,
        on_record: OnRecord,
        on_timer: OnTimer,
        state: Callable[[], Any],
        store: StoreReader | None = None,
        is_kept: Callable[[Any], bool] | None = None,
        *,
        gives_apart: bool = False,
        replaces_states: bool = False,
    ) -> None:
        super().__init__(name)
        self._on_record = on_record
        self._on_timer = on_timer
        self._make = state
        self._is_kept = is_kept
        self._gives_apart = gives_apart
        self._replaces_states = replaces_states
        self._state: KeyedState[Any] = KeyedState(name, store, _same, _same)
        self.timers = TimerQueue(f"{name}~timers", store)
        self.wall = TimerQueue(f"{name}~wall", store)
        self.counted: dict[str, int] = {}
        self._firing: TimerQueue | None = None
        self._pending: set[tuple[int, Any]] = set()
        """Of the queue that is firing those of this time that are still to be called: they can be called off, and are not set twice."""
        self._fired: dict[tuple[Any, str, str, int], int] = {}
        self._context: KeyContext[Any, Any] = KeyContext(self)
        self._is_forgotten = False
        self._given: dict[int, ColumnBatch] = {}

    def process(self, port: int, batch: ColumnBatch) -> None:
        keys = batch.keys
        assert keys is not None
        self._context.watermark_ms = self.watermark
        once = dict.fromkeys(keys)
        live = self._state.load(once)
        before = {key: live.get(key) for key in once} if self._replaces_states else None
        position = 0
        failed: set[Any] = set()
        """Keys whose states are half changed: what comes of them after that is not looked at. The engine is spent."""
        records = zip(keys, batch.times, batch.values, strict=True)
        while position < len(keys):
            try:
                for key, time, value in records:
                    if not failed or key not in failed:
                        self._call(key, time, self._on_record, port, value)
                    position += 1
            except BaseException as exc:  # noqa: BLE001  raised, or told
                error = self._with_its_state(self.fail(exc, batch, position))
                self.tell_failed(error, exc)
                failed.add(keys[position])
                position += 1
        if before is not None:
            keys = [key for key, state in before.items() if live.get(key) is not state]
        self._state.touch(keys)
        self._fire(self.timers, self.watermark)
        self._flush()

    def advance(self, watermark: int) -> None:
        self.watermark = self._context.watermark_ms = watermark
        self._fire(self.timers, watermark)
        self._flush()

    def tick(self, now_ms: int) -> None:
        self._context.now_ms = now_ms
        self._context.watermark_ms = self.watermark
        self._fire(self.wall, now_ms)
        self._flush()

    def _fire(self, timers: TimerQueue, now: int) -> None:
        while due := timers.take_next(now):
            keys = dict.fromkeys(key for _, (key, _) in due)
            self._state.load(keys)
            clock = "event" if timers is self.timers else "wall"
            self._firing, self._pending = timers, set(due)
            for one in due:
                if one not in self._pending:
                    continue  # called off by another of its time
                self._pending.remove(one)
                time, (key, name) = one
                timer = (name, clock, time, self._times_fired(key, name, clock, time))
                if self.passed_over and FiredTimer(self.name, key, timer) in self.passed_over:
                    continue
                try:
                    self._call(key, self._event_time(timers, time), self._on_timer, name)
                except BaseException as exc:
                    error = self._with_its_state(self.fail(exc, None, None, key))
                    error.timer = timer
                    raise error from exc
            self._state.touch(keys)

    def _with_its_state(self, error: FlowFunctionError) -> FlowFunctionError:
        """The same; where the state is a record of another class than `state=` makes, it says so: perhaps that has changed since the state was kept."""
        kept: Any = type(self._context.state)
        with suppress(Exception):  # of the user's class, or function
            made: Any = type(self._make())
            if is_record_class(made) and is_record_class(kept) and not issubclass(kept, made):
                hint = (
                    f" (the state of the key is a {kept.__qualname__}, and state= makes a {made.__qualname__}; if the class has changed, say how "
                    "one becomes the other: .named(…, version=2, migrate={1: …}))"
                )
                error.args = (f"{error}{hint}",)
        return error

    def _times_fired(self, key: Any, name: str, clock: str, time: int) -> int:
        """Since the last checkpoint, this one counted; where timers may be passed over, who begins again from there has to tell them apart."""
        if not (self.collects or self.passed_over):
            return 1
        timer = (key, name, clock, time)
        times = self._fired[timer] = self._fired.get(timer, 0) + 1
        return times

    def _event_time(self, timers: TimerQueue, time: int) -> int:
        if timers is self.timers:
            return time
        has_come = BEGINNING_OF_TIME < self.watermark < END_OF_TIME
        return self.watermark if has_come else time

    def _call(
        self, key: Any, time: int, function: Callable[..., Iterable[Any]], *args: Any
    ) -> None:
        """One call of a user's function; hot, where there are many records."""
        live, context = self._state.live, self._context
        context.key = key
        context.time_ms = time
        context.state = live[key] if key in live else self._make()
        self._is_forgotten = False
        for value in function(context, *args):
            self.give(MAIN, time, value)
        state = context.state
        if self._is_forgotten or (self._is_kept is not None and not self._is_kept(state)):
            live.pop(key, None)
        else:
            live[key] = state

    def set_timer(self, timers: TimerQueue, at_ms: int, payload: Any) -> None:
        if not (self._pending and timers is self._firing and (at_ms, payload) in self._pending):
            timers.set(at_ms, payload)

    def cancel_timer(self, timers: TimerQueue, at_ms: int, payload: Any) -> None:
        if timers is self._firing:
            self._pending.discard((at_ms, payload))
        timers.cancel(at_ms, payload)

    def forget(self) -> None:
        self._is_forgotten = True

    def give(self, port: int, time: int, value: Any) -> None:
        batch = self._given.get(port)
        if batch is None:
            batch = self._given[port] = ColumnBatch([], [], [])
        assert batch.keys is not None
        if self._gives_apart:
            value = apart_from(self._context.state, value)
        batch.times.append(time)
        batch.values.append(value)
        batch.keys.append(self._context.key)

    def _flush(self) -> None:
        self.out += sorted(self._given.items())
        self._given = {}

    def take_changes(self, changes: Changes) -> None:
        self._fired.clear()
        for part in (self._state, self.timers, self.wall):
            changes.setdefault(part.space, {}).update(part.take_changes())

    def counts(self) -> dict[str, int]:
        return dict(self.counted)


def _same(value: Any) -> Any:
    return value
