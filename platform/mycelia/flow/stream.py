"""How a flow is written: streams, and what can be made of them. A description; `FlowPlan` checks it, `Engine` runs it.

Each step gives a stream of the type that it makes, so that type checkers follow a record from its source to its sink. Nothing runs
while a flow is described, and a stream may be used any number of times. What a step is in the graph of the flow: `step_nodes`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Self,
    TypeGuard,
    TypeVar,
    overload,
)

import msgspec

from mycelia.durations import Duration
from mycelia.errors import ConfigError
from mycelia.flow.aggregations import Aggregation, all_of, collect
from mycelia.flow.emission import AfterRecords, Emission, EveryPeriod, Mode
from mycelia.flow.graph import FlowNode, NodePort
from mycelia.flow.joins import JoinKind
from mycelia.flow.operators import MAIN, SIDE
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.patterns import UNFINISHED
from mycelia.flow.processing import KeyContext
from mycelia.flow.results import LateRecord, WindowResult
from mycelia.flow.sinks.http_posts import PostSink
from mycelia.flow.sinks.rpc_calls import RpcSink
from mycelia.flow.sinks.sink import FlowSink, OwnSink, SinkWriter
from mycelia.flow.step_nodes import (
    Sides,
    as_of_join_node,
    asked_output,
    awaiting_node,
    branch_node,
    checked_window,
    dedup_node,
    event_time_node,
    expect_how,
    flat_map_node,
    interval_join_node,
    key_node,
    merge_node,
    name_step,
    pattern_node,
    process_node,
    stateless_node,
    table_join_node,
    table_output,
    window_node,
)
from mycelia.flow.windows import HoppingWindows, SessionWindows, WindowKind
from mycelia.logs import Log, LogWriter
from mycelia.policies.retry import Retry

__all__ = [
    "JoinedStream",
    "KeyedStream",
    "PatternStream",
    "ProcessedStream",
    "Stream",
    "WindowedResults",
    "WindowedStream",
    "source",
]

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
L = TypeVar("L")
S = TypeVar("S")
R = TypeVar("R")
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
R5 = TypeVar("R5")
R6 = TypeVar("R6")


_OF_OTHERS: Final = {
    **dict.fromkeys(
        (
            "window",
            "process",
            "dedup",
            "pattern",
            "as_table",
            "join_table",
            "join_as_of",
            "join_interval",
            "join_window",
        ),
        "(): it has no keys. Give its records some before, by key_by(…).",
    ),
    "aggregate": "(): it comes behind window(…).",
    "as_state": "(): it comes directly behind aggregate(…) or process(…).",
    "late": ": that is of the results of windows, joins and patterns, directly behind them.",
    "unfinished": ": that is of a pattern(…), directly behind it.",
}


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

    if not TYPE_CHECKING:  # they know what there is

        def __getattr__(self, name: str) -> Any:
            """Say what is missing where something is asked of a stream that only another kind has."""
            if name in _OF_OTHERS:
                raise AttributeError(
                    f"{self!r:.80} has no {name}{_OF_OTHERS[name]}", name=name, obj=self
                )
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )

    # --- steps without state -------------------------------------------------------------------------

    def map(self, function: Callable[[T], U]) -> Stream[U]:
        """What `function` makes of each record."""
        return Stream((stateless_node(self.port, "map", function), MAIN))

    @overload
    def filter(self, function: Callable[[T], TypeGuard[U]]) -> Stream[U]: ...
    @overload
    def filter(self, function: Callable[[T], object]) -> Stream[T]: ...
    def filter(self, function: Callable[[T], object]) -> Stream[Any]:
        """Those of which `function` is true. The others are dropped; `branch()` keeps them apart."""
        return Stream((stateless_node(self.port, "filter", function), MAIN))

    def flat_map(self, function: Callable[[T], Iterable[U]]) -> Stream[U]:
        """All that `function` gives for each record: none, one or many, at the record's event time."""
        return Stream((flat_map_node(self.port, function), MAIN))

    def map_async(
        self,
        function: Callable[[T], Awaitable[U]],
        *,
        concurrency: int = 16,
        timeout: Duration | None = "30s",
        retry: Retry | None = None,
    ) -> Stream[U]:
        """What an `async def` function makes of each record, in the order of the records: a call of another service, a look-up.

        It runs on the service's loop, for so many records of a partition at a time; the rest of the flow goes on with the batch when it has all. A
        record that fails is dealt with as one over which any function raises. After a crash it is called again for what was not committed.

        Args:
            function: of a record. A method of the service may use its dependencies: `await self.planes.get(flight.tail)`.
            concurrency: calls at a time, for each partition.
            timeout: of a call; None: any.
            retry: when it is called again before the record counts as failed; not at all, by default.
        """
        node = awaiting_node(self.port, "map_async", function, concurrency, timeout, retry)
        return Stream((node, MAIN))

    def flat_map_async(
        self,
        function: Callable[[T], Awaitable[Iterable[U]]],
        *,
        concurrency: int = 16,
        timeout: Duration | None = "30s",
        retry: Retry | None = None,
    ) -> Stream[U]:
        """All that an `async def` function gives for each record; see `map_async()`."""
        node = awaiting_node(self.port, "flat_map_async", function, concurrency, timeout, retry)
        return Stream((node, MAIN))

    def branch(self, function: Callable[[T], object]) -> tuple[Self, Self]:
        """Those of which `function` is true, and the others."""
        node = branch_node(self.port, function)
        return type(self)((node, MAIN)), type(self)((node, SIDE))

    def merge(self, other: Stream[U]) -> Stream[T | U]:
        """The records of both. Event time comes as far as in the one that is behind."""
        if not isinstance(other, Stream):
            raise ConfigError(f"merge({other!r:.60}): expected another stream.")
        return Stream((merge_node(self.port, other.port), MAIN))

    def named(
        self,
        name: str,
        *,
        was: str | None = None,
        version: int = 1,
        migrate: Mapping[int, Callable[[Any], Any]] | None = None,
    ) -> Self:
        """The same, its last step called `name`: in drawings, errors and metrics, and its state is kept under it.

        Without, a step is called by its kind and number, and another of that kind before it changes the number.

        Args:
            was: what it was called before: the state that is kept under that is taken over, once.
            version: of the state that `process()` keeps of a key; one higher when its shape changes.
            migrate: how the state of each version is made into that of the next: `{1: of_first}`. The function gets what was kept, with the fields
                of a record as a dictionary, and returns the state as it is now. Called once for each key, when a partition is taken over.
        """
        name_step(self.port[0], name, was, version, migrate)
        return self

    # --- where it goes -------------------------------------------------------------------------------

    def to(
        self,
        where: Log[T] | LogWriter[T] | FlowSink[T] | SinkWriter[T],
        *,
        name: str | None = None,
        feeds_back: bool = False,
    ) -> FlowOutput:
        """Append these records to a log, or hand them to a sink: what a method under `@flow` returns.

        In a log a record's key and time are what the log takes from it; where it takes none, those that it has in the flow. It is there once
        for whoever reads it with Mycelia, whatever crashes: batches that were published again are dropped by their sequence, and the
        record's header `id` is the same.

        A sink gets them after the commit, in order, and again after a crash, with the same ids; while it is away the flow waits.

        Args:
            where: a `Log` (one that is an attribute of the service is `self.hourly`, a writer to type checkers); `sql_table(…)`, `json_lines(…)`, `parquet_files(…)`, a `Broadcast`; or an object of yours with `async def write(records)`.
            name: the output's, part of its records' ids; that of the log or the sink by default.
            feeds_back: True for a log that the flow reads, so that these records come to it again; without, that is refused.
        """
        if isinstance(where, Log):
            if name is not None:
                raise ConfigError(f'to(…, name="{name}"): an output to a log has the log\'s name.')
            return FlowOutput(where.name, self.port, log=where, feeds_back=feeds_back)
        if isinstance(where, SinkWriter) and not isinstance(where, FlowSink):
            where = OwnSink(where)
        if not isinstance(where, FlowSink):
            raise ConfigError(
                f'to({where!r:.60}): expected a Log, a sink, or an object with `async def write(records)`. For an event: emit("type").'
            )
        return FlowOutput(name or where.name, self.port, sink=where)

    def call(
        self,
        method: str,
        *,
        batch: int | None = None,
        concurrency: int = 16,
        timeout: Duration | None = None,
        attempts: int = 6,
        name: str | None = None,
    ) -> FlowOutput:
        """Call a service's method with each of these records: `alerts.call("pager.page")`. What a method under `@flow` returns.

        The context data `idempotency_key` is the same if a call is made again: after a timeout, or a crash. While the service is
        away the flow waits; calls of different keys are made at the same time, those of one key one after the other.

        Args:
            batch: call with lists of so many records at most, one call at a time.
            concurrency: calls of a partition at a time, without `batch`.
            timeout: of a call; the setting `mycelia.rpc_timeout` by default.
            attempts: after so many calls in which the method raised, the flow's `on_error` says what becomes of the record.
        """
        sink: RpcSink[T] = RpcSink(
            method, batch=batch, concurrency=concurrency, timeout=timeout, attempts=attempts
        )
        return FlowOutput(name or sink.name, self.port, sink=sink)

    def post(
        self,
        url: str,
        *,
        batch: int | None = None,
        concurrency: int = 4,
        timeout: Duration = "30s",
        attempts: int | None = None,
        headers: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> FlowOutput:
        """POST each of these records, as JSON: `alerts.post("https://…", headers={"Authorization": …})`.

        The header `Idempotency-Key` is the same if a request is made again: after no answer, an answer of 408, 425, 429 or 5xx, or a crash.
        `Retry-After` is followed. Any other answer than 2xx is a refusal: the flow's `on_error` says what becomes of the record. Redirections are not followed.

        Args:
            batch: a list of so many records at most as one request.
            concurrency: requests of a partition at a time, without `batch`; four threads make those of all partitions.
            timeout: of a request, from the connection to the end of its answer's head, however slowly that comes; then it is made again.
            attempts: after so many answers of those that may change the request counts as refused; None: it is made again for as long as it takes.
            headers: of each request.
        """
        sink: PostSink[T] = PostSink(
            url,
            batch=batch,
            concurrency=concurrency,
            timeout=timeout,
            attempts=attempts,
            headers=headers,
        )
        return FlowOutput(name or sink.name, self.port, sink=sink)

    def emit(self, event_type: str, *, feeds_back: bool = False) -> FlowOutput:
        """Make an event of the service of each of these records: what a method under `@flow` returns.

        A crash may publish an event again, with the same `message_id`.

        Args:
            feeds_back: True for events that the flow reads, by `events()`; without, that is refused.
        """
        if type(event_type) is not str or not event_type:
            raise ConfigError(f"emit({event_type!r:.60}): expected the type of an event.")
        return FlowOutput(event_type, self.port, event_type=event_type, feeds_back=feeds_back)

    # --- time and keys -------------------------------------------------------------------------------

    @overload
    def event_time(
        self,
        function: Callable[[T], datetime],
        *,
        disorder: Duration = 0,
        idle: Duration | None = None,
        ahead: Duration = "365d",
    ) -> Self: ...
    @overload
    def event_time(
        self,
        function: Callable[[T], float],
        *,
        unit: Literal["s", "ms"],
        disorder: Duration = 0,
        idle: Duration | None = None,
        ahead: Duration = "365d",
    ) -> Self: ...
    def event_time(
        self,
        function: Callable[[T], Any],
        *,
        unit: Literal["s", "ms"] = "s",
        disorder: Duration = 0,
        idle: Duration | None = None,
        ahead: Duration = "365d",
    ) -> Self:
        """The same records, each at the time that `function` reads from it; and how far event time has come.

        The watermark of a partition is its greatest event time less `disorder`, of several the lowest. A record that comes later than
        that may find its windows closed: see `window(lateness=)`.

        Args:
            function: gives a moment in a time zone; with `unit`, a number of seconds or milliseconds since 1970.
            disorder: how much earlier than the latest of its partition a record may be.
            idle: a partition that has been silent for so long holds the others up no more.
            ahead: a record whose time is this much after all others of its partition, or after now, is rejected, as one of before 1970 is:
                it would make all others late. See `Engine.take_rejected()`.
        """
        node = event_time_node(self.port, function, unit, disorder, idle, ahead)
        return type(self)((node, MAIN))

    @overload
    def key_by(self, key: str, *, repartition: bool = True) -> KeyedStream[Any, T]: ...
    @overload
    def key_by(self, key: Callable[[T], K], *, repartition: bool = True) -> KeyedStream[K, T]: ...
    def key_by(self, key: Any, *, repartition: bool = True) -> KeyedStream[Any, T]:
        """The same records, each with its key: what state, windows and joins tell apart, and within which order is kept.

        In a service, where state or a join follows, all records of a key have to come to one partition. If the log is not split by this key
        already, they are split anew: they pass through a log of the flow's own (docs/flows.md says what that costs). It is not done where the
        key is the log's own, or several fields with that among them (`lambda f: f.origin` and "origin" are the same), or the log has one
        partition.

        Args:
            key: a function of a record, or the name of a field. Keys are text, numbers, bytes, or tuples of these. A record whose key is
                None is rejected: see `Engine.take_rejected()`.
            repartition: False is a promise: all records of one key are in one partition of the log as it is, and in the same one of a log
                that this is joined with. Where it is not kept, each partition counts for itself, and joins miss their partners, in silence.
        """
        return KeyedStream((key_node(self.port, key, repartition), MAIN))


class KeyedStream(Stream[T], Generic[K, T]):
    """Records of type `T` with keys of type `K`. Steps without state leave the keys as they are."""

    def map(self, function: Callable[[T], U]) -> KeyedStream[K, U]:
        """What `function` makes of each record, under the record's key."""
        return KeyedStream((stateless_node(self.port, "map", function), MAIN))

    @overload
    def filter(self, function: Callable[[T], TypeGuard[U]]) -> KeyedStream[K, U]: ...
    @overload
    def filter(self, function: Callable[[T], object]) -> KeyedStream[K, T]: ...
    def filter(self, function: Callable[[T], object]) -> KeyedStream[K, Any]:
        """Those of which `function` is true."""
        return KeyedStream((stateless_node(self.port, "filter", function), MAIN))

    def flat_map(self, function: Callable[[T], Iterable[U]]) -> KeyedStream[K, U]:
        """All that `function` gives for each record, under the record's key."""
        return KeyedStream((flat_map_node(self.port, function), MAIN))

    def map_async(
        self,
        function: Callable[[T], Awaitable[U]],
        *,
        concurrency: int = 16,
        timeout: Duration | None = "30s",
        retry: Retry | None = None,
    ) -> KeyedStream[K, U]:
        """What an `async def` function makes of each record, under the record's key, in the order of the records: a call of another service, a look-up.

        It runs on the service's loop, for so many records of a partition at a time; the rest of the flow goes on with the batch when it has all. A
        record that fails is dealt with as one over which any function raises. After a crash it is called again for what was not committed.

        Args:
            function: of a record. A method of the service may use its dependencies: `await self.planes.get(flight.tail)`.
            concurrency: calls at a time, for each partition.
            timeout: of a call; None: any.
            retry: when it is called again before the record counts as failed; not at all, by default.
        """
        node = awaiting_node(self.port, "map_async", function, concurrency, timeout, retry)
        return KeyedStream((node, MAIN))

    def flat_map_async(
        self,
        function: Callable[[T], Awaitable[Iterable[U]]],
        *,
        concurrency: int = 16,
        timeout: Duration | None = "30s",
        retry: Retry | None = None,
    ) -> KeyedStream[K, U]:
        """All that an `async def` function gives for each record, under the record's key; see `map_async()`."""
        node = awaiting_node(self.port, "flat_map_async", function, concurrency, timeout, retry)
        return KeyedStream((node, MAIN))

    @overload
    def merge(self, other: KeyedStream[K, U]) -> KeyedStream[K, T | U]: ...
    @overload
    def merge(self, other: Stream[U]) -> Stream[T | U]: ...
    def merge(self, other: Stream[U]) -> Stream[T | U]:
        """The records of both, under their keys if both have some. Event time comes as far as in the one that is behind."""
        merged = super().merge(other)
        return KeyedStream(merged.port) if isinstance(other, KeyedStream) else merged

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
        lateness_ms, emission = checked_window(kind, lateness, emit, late, mode)
        return WindowedStream(self.port, kind, lateness_ms, emission)

    # --- functions with state ------------------------------------------------------------------------

    def process(
        self,
        on_record: Callable[[KeyContext[K, S], T], Iterable[U]],
        *,
        state: Callable[[], S],
        on_timer: Callable[[KeyContext[K, S], str], Iterable[U]] | None = None,
    ) -> ProcessedStream[K, U]:
        """What a function with state gives for each record, and for each timer that it set. Both may be generators.

        Args:
            on_record: of the context (key, state, time, timers) and the record.
            state: makes the state of a key that has none: a class, a function. Plain values, a `msgspec.Struct`, a dataclass.
            on_timer: of the context and the timer's name.
        """
        node = process_node(self.port, on_record, state, on_timer)
        return ProcessedStream((node, MAIN))

    def dedup(self, by: str | Callable[[T], Any], *, within: Duration) -> KeyedStream[K, T]:
        """The first record of each id of a key; those with the same id and an event time at most `within` away are dropped, and counted.

        Args:
            by: the id: a function of a record, or the name of a field.
            within: how long an id is remembered, in event time.
        """
        return KeyedStream((dedup_node(self.port, by, within), MAIN))

    def pattern(self, *steps: Callable[[T], object], within: Duration) -> PatternStream[K, T]:
        """Records of a key that follow each other: one of which the first step is true, later one for the second, and so on.

        Others may lie between them, and a record is in one sequence at most. They are taken in order of event time.

        Args:
            within: how much later than the first the last may be.
        """
        return PatternStream((pattern_node(self.port, steps, within), MAIN))

    def as_table(self, name: str) -> FlowOutput:
        """Keep of each key the record that is the newest in event time, to be asked for: what a method under `@flow` returns.

        The service answers `get_<name>(key)` by RPC, whichever of its instances has the key. It is kept with the state, and answers are
        of the last commit. Keys stay until the flow is reset.

        Args:
            name: part of the name of a method: letters, digits and `_`. Its step is called `table-<name>`.
        """
        return table_output(self.port, name)

    # --- joins ---------------------------------------------------------------------------------------

    @overload
    def join_table(
        self, table: KeyedStream[K, U], *, how: Literal["inner"] = "inner"
    ) -> KeyedStream[K, tuple[T, U]]: ...
    @overload
    def join_table(
        self, table: KeyedStream[K, U], *, how: Literal["left"]
    ) -> KeyedStream[K, tuple[T, U | None]]: ...
    def join_table(
        self, table: KeyedStream[K, U], *, how: JoinKind = "inner"
    ) -> KeyedStream[K, Any]:
        """Each record with what `table` last said of its key: the newest of what had come by then.

        It does not wait: a record that comes before its row finds none. The table's watermark holds nobody up. In a service a source
        that is a table and nothing else, over steps without state, is read from its beginning, up to where it ends before anything else
        is taken; not so one that is split anew for it.

        Args:
            how: "left" for records without a row as well, with None; else they are dropped, and counted.
        """
        node = table_join_node(self._sides(table, "join_table"), how)
        return KeyedStream((node, MAIN))

    @overload
    def join_as_of(
        self,
        other: KeyedStream[K, U],
        *,
        how: Literal["inner"] = "inner",
        tolerance: Duration | None = None,
        lateness: Duration = 0,
    ) -> JoinedStream[K, tuple[T, U], T]: ...
    @overload
    def join_as_of(
        self,
        other: KeyedStream[K, U],
        *,
        how: Literal["left"],
        tolerance: Duration | None = None,
        lateness: Duration = 0,
    ) -> JoinedStream[K, tuple[T, U | None], T]: ...
    def join_as_of(
        self,
        other: KeyedStream[K, U],
        *,
        how: JoinKind = "inner",
        tolerance: Duration | None = None,
        lateness: Duration = 0,
    ) -> JoinedStream[K, Any, Any]:
        """Each record with the one of `other` that was the newest of its key at the record's event time, or at the same time.

        It waits until event time has passed the record, in both streams. The newest of each key is kept for good, unless there
        is a tolerance.

        Args:
            how: "left" for records without a partner as well, with None; else they are dropped, and counted.
            tolerance: how much older than the record its partner may be.
            lateness: how late a record may come and still find what it belongs to; a later one is in `late`.
        """
        node = as_of_join_node(self._sides(other, "join_as_of"), how, tolerance, lateness)
        return JoinedStream((node, MAIN))

    @overload
    def join_interval(
        self,
        other: KeyedStream[K, U],
        *,
        before: Duration = 0,
        after: Duration = 0,
        how: Literal["inner"] = "inner",
        lateness: Duration = 0,
    ) -> JoinedStream[K, tuple[T, U], T | U]: ...
    @overload
    def join_interval(
        self,
        other: KeyedStream[K, U],
        *,
        before: Duration = 0,
        after: Duration = 0,
        how: Literal["left"],
        lateness: Duration = 0,
    ) -> JoinedStream[K, tuple[T, U | None], T | U]: ...
    @overload
    def join_interval(
        self,
        other: KeyedStream[K, U],
        *,
        before: Duration = 0,
        after: Duration = 0,
        how: Literal["full"],
        lateness: Duration = 0,
    ) -> JoinedStream[K, tuple[T, U] | tuple[T, None] | tuple[None, U], T | U]: ...
    def join_interval(
        self,
        other: KeyedStream[K, U],
        *,
        before: Duration = 0,
        after: Duration = 0,
        how: JoinKind = "inner",
        lateness: Duration = 0,
    ) -> JoinedStream[K, Any, Any]:
        """All pairs of a key in which the record of `other` is at most `before` earlier and at most `after` later.

        A pair is given as its second record comes. What finds no partner is given, if `how` asks for it, when none can come any more.

        Args:
            how: "inner" for pairs, "left" for records without a partner as well, "full" for those of `other` as well.
            lateness: how late a record may come and still find its partners; a later one is in `late`.
        """
        sides = self._sides(other, "join_interval")
        return JoinedStream((interval_join_node(sides, how, before, after, lateness), MAIN))

    @overload
    def join_window(
        self,
        other: KeyedStream[K, U],
        kind: HoppingWindows | SessionWindows,
        *,
        how: Literal["inner"] = "inner",
    ) -> JoinedStream[K, WindowResult[K, tuple[T, U]], T | U]: ...
    @overload
    def join_window(
        self,
        other: KeyedStream[K, U],
        kind: HoppingWindows | SessionWindows,
        *,
        how: Literal["left"],
    ) -> JoinedStream[K, WindowResult[K, tuple[T, U | None]], T | U]: ...
    @overload
    def join_window(
        self,
        other: KeyedStream[K, U],
        kind: HoppingWindows | SessionWindows,
        *,
        how: Literal["full"],
    ) -> JoinedStream[K, WindowResult[K, tuple[T, U] | tuple[T, None] | tuple[None, U]], T | U]: ...
    def join_window(
        self,
        other: KeyedStream[K, U],
        kind: HoppingWindows | SessionWindows,
        *,
        how: JoinKind = "inner",
    ) -> JoinedStream[K, Any, Any]:
        """All pairs of a key in the same window, as the window closes.

        Args:
            kind: `tumbling("10s")`, `hopping(…)` or `session(…)`.
            how: "inner" for pairs, "left" for records whose window has none of `other` as well, "full" for those of `other` as well.
        """
        expect_how(how, ("inner", "left", "full"), "join_window")
        if not isinstance(kind, HoppingWindows | SessionWindows):
            raise ConfigError(
                f"join_window({kind}): expected tumbling(…), hopping(…) or session(…)."
            )
        sides: KeyedStream[K, Any] = KeyedStream(
            self.map(_of_left).merge(other.map(_of_right)).port
        )
        windows = sides.window(kind).aggregate(collect())
        windows.port[0].kind = "join_window"
        windows.port[0].label = f"join_window({kind}, {how})"
        pairs = windows.flat_map(_pairs(how))
        joined: JoinedStream[K, Any, Any] = JoinedStream(pairs.port)
        joined.late_port = windows.late.map(_without_side).port
        return joined

    def _sides(self, other: KeyedStream[K, Any], where: str) -> Sides:
        if not isinstance(other, KeyedStream):
            raise ConfigError(
                f"{where}(): the other stream has no keys. Give it those of this one, by key_by()."
            )
        return self.port, other.port


def _of_left(value: Any) -> tuple[int, Any]:
    return 0, value


def _of_right(value: Any) -> tuple[int, Any]:
    return 1, value


def _without_side(late: LateRecord[Any, Any]) -> LateRecord[Any, Any]:
    return msgspec.structs.replace(late, value=late.value[1])


def _pairs(how: JoinKind) -> Callable[[WindowResult[Any, Any]], list[WindowResult[Any, Any]]]:
    """The pairs in a window's records of both sides, each a result of its own."""

    def paired(window: WindowResult[Any, Any]) -> list[WindowResult[Any, Any]]:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for side, value in window.value:
            sides[side].append(value)
        left, right = sides
        if not right and how != "inner":
            right = [None]
        if not left and how == "full":
            left = [None]
        pairs = ((one, other) for one in left for other in right)
        return [
            msgspec.structs.replace(window, value=pair, index=index)
            for index, pair in enumerate(pairs)
        ]

    return paired


class ProcessedStream(KeyedStream[K, T]):
    """What a function with state gives, under the keys of its records; and the state itself, to be asked for."""

    def as_state(self, name: str) -> FlowOutput:
        """Have the function's state of a key asked for: what a method under `@flow` returns. Nothing leaves by it, and the stream may be used as before.

        The service answers `get_<name>(key)` by RPC, whichever of its instances has the key: an object with `state`, as of the last commit.

        Args:
            name: part of the name of a method: letters, digits and `_`.
        """
        return asked_output(self.port, name, "process")


class JoinedStream(KeyedStream[K, T], Generic[K, T, L]):
    """What a join gives; and, beside it, what came too late to be joined: records of type `L`, those of either side."""

    late_port: NodePort | None = None

    @property
    def late(self) -> KeyedStream[K, LateRecord[K, L]]:
        """Records of either side that came after what they might have been joined with was let go. Counted in any case."""
        return KeyedStream(self.late_port or (self.port[0], SIDE))


class PatternStream(KeyedStream[K, list[T]], Generic[K, T]):
    """Sequences of records, one for each step of a pattern; and, beside them, what did not become one."""

    @property
    def late(self) -> KeyedStream[K, LateRecord[K, T]]:
        """Records that came after others of a later time had been looked at. Counted in any case."""
        return KeyedStream((self.port[0], SIDE))

    @property
    def unfinished(self) -> KeyedStream[K, list[T]]:
        """What began and did not go on in time: the first of its records, at the event time at which it was given up."""
        return KeyedStream((self.port[0], UNFINISHED))


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
        node = window_node(self._port, self._kind, whole, self._emission, self._lateness_ms)
        return WindowedResults((node, MAIN))


class WindowedResults(KeyedStream[K, WindowResult[K, R]], Generic[K, T, R]):
    """The results of windows, under their keys; and, beside them, what came too late. The windows that are open may be asked for."""

    def as_state(self, name: str) -> FlowOutput:
        """Have the open windows of a key asked for: what a method under `@flow` returns. Nothing leaves by it, and the stream may be used as before.

        The service answers `get_<name>(key)` by RPC, whichever of its instances has the key: an object with `windows`, the latest 100 at most,
        each with its bounds and its result so far, as of the last commit.

        Args:
            name: part of the name of a method: letters, digits and `_`.
        """
        return asked_output(self.port, name, "window")

    @property
    def late(self) -> KeyedStream[K, LateRecord[K, T]]:
        """The records that came when a window of theirs was closed for good. Counted in any case; to be had here."""
        return KeyedStream((self.port[0], SIDE))
