"""How a flow is written: streams, and what can be made of them. A description; `FlowPlan` checks it, `Engine` runs it.

Each step gives a stream of the type that it makes, so that type checkers follow a record from its source to its sink. Nothing runs
while a flow is described, and a stream may be used any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeGuard, TypeVar, overload

from mycelia.durations import Duration, duration_text
from mycelia.errors import ConfigError
from mycelia.flow.aggregations import Aggregation, all_of
from mycelia.flow.aligned_windows import AlignedWindows
from mycelia.flow.count_windows import FillingWindows
from mycelia.flow.emission import AfterRecords, Emission, EveryPeriod, Mode, emission_of
from mycelia.flow.fields import getter_of
from mycelia.flow.graph import Building, FlowNode, NodePort, described
from mycelia.flow.operators import MAIN, SIDE, Operator
from mycelia.flow.results import LateRecord, WindowResult
from mycelia.flow.session_windows import MergingWindows
from mycelia.flow.sliding_windows import TrailingWindows
from mycelia.flow.stateless import Branching, FlowStep, Merging, Stamping
from mycelia.flow.windows import (
    CountWindows,
    HoppingWindows,
    SessionWindows,
    SlidingWindows,
    WindowKind,
    milliseconds_of,
)

__all__ = ["KeyedStream", "Stream", "WindowedResults", "WindowedStream", "source"]

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
R = TypeVar("R")
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
R5 = TypeVar("R5")
R6 = TypeVar("R6")


def source(name: str, of: type[T]) -> Stream[T]:
    """Where records come from: a log, a queue, whatever the runner has under this name. They bear an event time, and perhaps a key.

    Args:
        of: what each record is, for type checkers.
    """
    if not name:
        raise ConfigError(f"source({name!r:.60}): expected a name.")
    return Stream((FlowNode("source", f"of {getattr(of, '__name__', of)}", (), name=name), MAIN))


class Stream(Generic[T]):
    """Records of type `T`, one after the other; in order of arrival, each with its event time."""

    def __init__(self, port: NodePort) -> None:
        self.port = port
        """The step that gives these records, and which of its ports."""

    def __repr__(self) -> str:
        node, port = self.port
        return f"{type(self).__name__}({node!r}{', beside' if port else ''})"

    def _then(self, node: FlowNode) -> Any:
        """The stream of `node`, of this one's kind."""
        return type(self)((node, MAIN))

    def _step(self, kind: str, function: Callable[..., Any], made: Callable[..., Any]) -> FlowNode:
        if not callable(function):
            raise ConfigError(f"{kind}({function!r:.60}): expected a function of a record.")
        label = f"{kind}({described(function)})"
        return FlowNode(kind, label, (self.port,), step=FlowStep(kind, label, made))

    # --- steps without state -------------------------------------------------------------------------

    def map(self, function: Callable[[T], U]) -> Stream[U]:
        """What `function` makes of each record."""
        return Stream((self._step("map", function, function), MAIN))

    @overload
    def filter(self, function: Callable[[T], TypeGuard[U]]) -> Stream[U]: ...
    @overload
    def filter(self, function: Callable[[T], object]) -> Stream[T]: ...
    def filter(self, function: Callable[[T], object]) -> Stream[Any]:
        """Those of which `function` is true. The others are dropped; `branch()` keeps them apart."""
        return Stream((self._step("filter", function, function), MAIN))

    def flat_map(self, function: Callable[[T], Iterable[U]]) -> Stream[U]:
        """All that `function` gives for each record: none, one or many, at the record's event time."""
        return Stream((self._step("flat_map", function, _listing(function)), MAIN))

    def branch(self, function: Callable[[T], object]) -> tuple[Self, Self]:
        """Those of which `function` is true, and the others."""
        node = self._step("branch", function, function)
        node.step = None
        node.make = lambda built: Branching(built.name, function)
        return type(self)((node, MAIN)), type(self)((node, SIDE))

    def merge(self, other: Stream[U]) -> Stream[T | U]:
        """The records of both. Event time comes as far as in the one that is behind."""
        node = FlowNode(
            "merge", "merge()", (self.port, other.port), make=lambda built: Merging(built.name)
        )
        return Stream((node, MAIN))

    def named(self, name: str) -> Self:
        """The same, its last step called `name`: in drawings, errors and metrics, and its state is kept under it.

        Without, a step is called by its kind and number, and another of that kind before it changes the number.
        """
        node, _ = self.port
        if node.kind == "source":
            raise ConfigError(f'the source "{node.name}" has its name already.')
        node.name = name
        return self

    # --- time and keys -------------------------------------------------------------------------------

    @overload
    def event_time(
        self,
        function: Callable[[T], datetime],
        *,
        disorder: Duration = 0,
        idle: Duration | None = None,
    ) -> Self: ...
    @overload
    def event_time(
        self,
        function: Callable[[T], float],
        *,
        unit: Literal["s", "ms"],
        disorder: Duration = 0,
        idle: Duration | None = None,
    ) -> Self: ...
    def event_time(
        self,
        function: Callable[[T], Any],
        *,
        unit: Literal["s", "ms"] = "s",
        disorder: Duration = 0,
        idle: Duration | None = None,
    ) -> Self:
        """The same records, each at the time that `function` reads from it; and how far event time has come.

        The watermark of a partition is its greatest event time less `disorder`, of several the lowest. A record that comes later than
        that may find its windows closed: see `window(lateness=)`.

        Args:
            function: gives a moment in a time zone; with `unit`, a number of seconds or milliseconds since 1970.
            disorder: how much earlier than the latest of its partition a record may be.
            idle: a partition that has been silent for so long holds the others up no more.
        """
        if unit not in ("s", "ms"):
            raise ConfigError(f'event_time(unit={unit!r:.60}): expected "s" or "ms".')
        disorder_ms = milliseconds_of(disorder, "event_time(disorder=)")
        idle_ms = None if idle is None else milliseconds_of(idle, "event_time(idle=)", 1)
        unit_ms = 1 if unit == "ms" else 1000
        label = f"event_time({described(function)}, disorder={_text(disorder_ms)})"

        def make(built: Building) -> Operator:
            return Stamping(
                built.name, function, unit_ms, built.channels, disorder_ms, idle_ms, built.store
            )

        node = FlowNode("event_time", label, (self.port,), make=make, signature="event_time")
        stamped: Self = self._then(node)
        return stamped

    @overload
    def key_by(self, key: str) -> KeyedStream[Any, T]: ...
    @overload
    def key_by(self, key: Callable[[T], K]) -> KeyedStream[K, T]: ...
    def key_by(self, key: Any) -> KeyedStream[Any, T]:
        """The same records, each with its key: what state, windows and joins tell apart, and within which order is kept.

        Args:
            key: a function of a record, or the name of a field. Keys are text, numbers, bytes, or tuples of these.
        """
        function = getter_of(key, "key_by()")
        return KeyedStream((self._step("key_by", function, function), MAIN))


def _listing(function: Callable[[T], Iterable[U]]) -> Callable[[T], list[U]]:
    """`function`, run to its end: a generator raises in the middle of its record, not of another."""

    def listed(record: T) -> list[U]:
        return list(function(record))

    return listed


class KeyedStream(Stream[T], Generic[K, T]):
    """Records of type `T` with keys of type `K`. Steps without state leave the keys as they are."""

    def map(self, function: Callable[[T], U]) -> KeyedStream[K, U]:
        """What `function` makes of each record, under the record's key."""
        return KeyedStream((self._step("map", function, function), MAIN))

    @overload
    def filter(self, function: Callable[[T], TypeGuard[U]]) -> KeyedStream[K, U]: ...
    @overload
    def filter(self, function: Callable[[T], object]) -> KeyedStream[K, T]: ...
    def filter(self, function: Callable[[T], object]) -> KeyedStream[K, Any]:
        """Those of which `function` is true."""
        return KeyedStream((self._step("filter", function, function), MAIN))

    def flat_map(self, function: Callable[[T], Iterable[U]]) -> KeyedStream[K, U]:
        """All that `function` gives for each record, under the record's key."""
        return KeyedStream((self._step("flat_map", function, _listing(function)), MAIN))

    def window(
        self,
        kind: WindowKind,
        *,
        lateness: Duration = 0,
        emit: Literal["close", "update"] | EveryPeriod | AfterRecords = "close",
        late: Literal["update"] | AfterRecords = "update",
        mode: Mode = "accumulate",
    ) -> WindowedStream[K, T]:
        """The records of each key in windows; `aggregate()` says what is made of them.

        Args:
            kind: `tumbling("1h")`, `hopping("1h", every="5m")`, `sliding("10m")`, `session("30m")`, `counting(100)`.
            lateness: how long after its end has come by a window still takes records, and gives further results.
            emit: results before the end: "close" for none, "update" for one after each batch that changed something, `every("1m")`,
                `after(100)` records. At its end a window always gives one.
            late: results after the end: "update", or `after(10)` records; what is left comes as the lateness ends.
            mode: what a further result says: "accumulate" (of all records), "discard" (of those since the last result),
                "retract" (of all, and the last result is given again before it, as a retraction).

        Raises:
            ConfigError: one of these is something else, or has no meaning for the kind of window.
        """
        where = f"window({kind})"
        emission = emission_of(emit, late, mode, where)
        lateness_ms = milliseconds_of(lateness, f"{where}: lateness=")
        if isinstance(kind, CountWindows) and (emission != Emission() or lateness_ms):
            raise ConfigError(
                f"{where}: a window of a number of records gives one result, as it is full. Leave lateness=, emit=, late= and mode= out."
            )
        if isinstance(kind, SlidingWindows) and (
            emission.mode == "discard" or isinstance(emission.early, EveryPeriod)
        ):
            raise ConfigError(
                f'{where}: sliding windows share their records, so mode="discard" and emit=every(…) have no meaning for them.'
            )
        if not isinstance(kind, HoppingWindows | SlidingWindows | SessionWindows | CountWindows):
            raise ConfigError(
                f'window({kind!r:.60}): expected tumbling("1h"), hopping(…), sliding(…), session(…) or counting(…).'
            )
        return WindowedStream(self.port, kind, lateness_ms, emission)


class WindowedStream(Generic[K, T]):
    """Records in windows, of which nothing has been said yet but which: `aggregate()` them."""

    def __init__(
        self, port: NodePort, kind: WindowKind, lateness_ms: int, emission: Emission
    ) -> None:
        self._port = port
        self._kind = kind
        self._lateness_ms = lateness_ms
        self._emission = emission

    @overload
    def aggregate(self, a: Aggregation[T, R1], /) -> WindowedResults[K, T, R1]: ...
    @overload
    def aggregate(
        self, a: Aggregation[T, R1], b: Aggregation[T, R2], /
    ) -> WindowedResults[K, T, tuple[R1, R2]]: ...
    @overload
    def aggregate(
        self, a: Aggregation[T, R1], b: Aggregation[T, R2], c: Aggregation[T, R3], /
    ) -> WindowedResults[K, T, tuple[R1, R2, R3]]: ...
    @overload
    def aggregate(
        self,
        a: Aggregation[T, R1],
        b: Aggregation[T, R2],
        c: Aggregation[T, R3],
        d: Aggregation[T, R4],
        /,
    ) -> WindowedResults[K, T, tuple[R1, R2, R3, R4]]: ...
    @overload
    def aggregate(
        self,
        a: Aggregation[T, R1],
        b: Aggregation[T, R2],
        c: Aggregation[T, R3],
        d: Aggregation[T, R4],
        e: Aggregation[T, R5],
        /,
    ) -> WindowedResults[K, T, tuple[R1, R2, R3, R4, R5]]: ...
    @overload
    def aggregate(
        self,
        a: Aggregation[T, R1],
        b: Aggregation[T, R2],
        c: Aggregation[T, R3],
        d: Aggregation[T, R4],
        e: Aggregation[T, R5],
        f: Aggregation[T, R6],
        /,
    ) -> WindowedResults[K, T, tuple[R1, R2, R3, R4, R5, R6]]: ...
    @overload
    def aggregate(
        self,
        a: Aggregation[T, Any],
        b: Aggregation[T, Any],
        c: Aggregation[T, Any],
        d: Aggregation[T, Any],
        e: Aggregation[T, Any],
        f: Aggregation[T, Any],
        g: Aggregation[T, Any],
        /,
        *more: Aggregation[T, Any],
    ) -> WindowedResults[K, T, tuple[Any, ...]]: ...
    def aggregate(self, *all: Aggregation[T, Any]) -> WindowedResults[K, T, Any]:
        """A result for each key and window: of one aggregation its own, of several the tuple of theirs."""
        whole = all_of(all)
        kind, lateness_ms, emission = self._kind, self._lateness_ms, self._emission

        def make(built: Building) -> Operator:
            name, store = built.name, built.store
            if isinstance(kind, HoppingWindows):
                return AlignedWindows(name, kind, whole, emission, lateness_ms, store)
            if isinstance(kind, SessionWindows):
                return MergingWindows(name, kind, whole, emission, lateness_ms, store)
            if isinstance(kind, SlidingWindows):
                return TrailingWindows(name, kind, whole, emission, lateness_ms, store)
            return FillingWindows(name, kind, whole, store)

        details = [str(kind)]
        if lateness_ms:
            details.append(f"lateness={_text(lateness_ms)}")
        if emission != Emission():
            details.append(str(emission))
        node = FlowNode(
            "window",
            f"{', '.join(details)}: {whole.name}",
            (self._port,),
            make=make,
            signature=f"window {kind}: {whole.name}",
        )
        return WindowedResults((node, MAIN))


class WindowedResults(KeyedStream[K, WindowResult[K, R]], Generic[K, T, R]):
    """The results of windows, under their keys; and, beside them, what came too late."""

    @property
    def late(self) -> KeyedStream[K, LateRecord[K, T]]:
        """The records that came when a window of theirs was closed for good. Counted in any case; to be had here."""
        return KeyedStream((self.port[0], SIDE))


def _text(milliseconds: int) -> str:
    return duration_text(milliseconds / 1000)
