"""What the steps of a stream are in the graph of its flow: arguments checked, a label for drawings, and the operator that is made of them.

`stream.py` says what each step is for whoever writes a flow; what becomes of it is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from mycelia.durations import Duration, duration_text, seconds_of
from mycelia.errors import ConfigError
from mycelia.flow.aggregations import Aggregation
from mycelia.flow.aligned_windows import AlignedWindows, open_aligned
from mycelia.flow.asked_state import STATE_KIND, AskedStep, ReadsWindows, state_output
from mycelia.flow.async_steps import Awaiting, AwaitingOptions
from mycelia.flow.count_windows import FillingWindows, open_filling
from mycelia.flow.emission import Emission, EveryPeriod, Mode, emission_of
from mycelia.flow.fields import getter_of
from mycelia.flow.graph import Building, FlowNode, NodePort, described
from mycelia.flow.joins import AsOfJoin, IntervalJoin, JoinKind, TableJoin
from mycelia.flow.operators import MAIN, Operator
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.patterns import Deduplication, Following
from mycelia.flow.processing import Processing
from mycelia.flow.session_windows import MergingWindows, open_sessions
from mycelia.flow.sliding_windows import TrailingWindows, open_trailing
from mycelia.flow.stateless import Branching, FlowStep, Merging, Stamping
from mycelia.flow.tables import KIND, Tabling, table_step
from mycelia.flow.user_code import expect_function
from mycelia.flow.windows import (
    CountWindows,
    HoppingWindows,
    SessionWindows,
    SlidingWindows,
    WindowKind,
    milliseconds_of,
)
from mycelia.policies.retry import Retry

__all__ = [
    "Sides",
    "as_of_join_node",
    "asked_output",
    "awaiting_node",
    "branch_node",
    "checked_window",
    "dedup_node",
    "event_time_node",
    "expect_how",
    "flat_map_node",
    "interval_join_node",
    "key_node",
    "merge_node",
    "name_step",
    "pattern_node",
    "process_node",
    "stateless_node",
    "table_join_node",
    "table_output",
    "window_node",
]

# --- steps without state -------------------------------------------------------------------------


def stateless_node(
    port: NodePort, kind: str, function: Callable[..., Any], made: Callable[..., Any] | None = None
) -> FlowNode:
    """Of `map()` and its like. Those that follow each other run as one operator.

    Args:
        made: what is called in place of `function`.
    """
    expect_function(function, f"{kind}()")
    label = f"{kind}({described(function)})"
    return FlowNode(kind, label, (port,), step=FlowStep(kind, label, made or function))


def flat_map_node(port: NodePort, function: Callable[[Any], Iterable[Any]]) -> FlowNode:
    """A generator is run to its end at once: it raises in the middle of its record, not of another."""

    def listed(record: Any) -> list[Any]:
        return list(function(record))

    return stateless_node(port, "flat_map", function, listed)


def awaiting_node(
    port: NodePort,
    kind: str,
    function: Any,
    concurrency: int,
    timeout: Duration | None,
    retry: Retry | None,
) -> FlowNode:
    """Of `map_async()` and `flat_map_async()`."""
    where = f"{kind}({described(function) if callable(function) else function!r:.60})"
    if not callable(function):
        raise ConfigError(f"{where}: expected an `async def` function of a record.")
    if type(concurrency) is not int or concurrency < 1:
        raise ConfigError(f"{where}: concurrency={concurrency!r:.60}; expected a number from 1.")
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigError(f"{where}: retry={retry!r:.60}; expected a Retry, or None.")
    seconds = None if timeout is None else seconds_of(timeout, f"{where}: timeout=")
    options = AwaitingOptions(concurrency, seconds, retry)
    is_flat = kind == "flat_map_async"

    def make(built: Building) -> Operator:
        return Awaiting(built.name, function, options, built.run, is_flat=is_flat)

    return FlowNode(kind, where, (port,), make=make)


def branch_node(port: NodePort, function: Callable[[Any], object]) -> FlowNode:
    expect_function(function, "branch()")

    def make(built: Building) -> Operator:
        return Branching(built.name, function)

    return FlowNode("branch", f"branch({described(function)})", (port,), make=make)


def merge_node(port: NodePort, other: NodePort) -> FlowNode:
    return FlowNode("merge", "merge()", (port, other), make=lambda built: Merging(built.name))


def name_step(
    node: FlowNode,
    name: str,
    was: str | None,
    version: int,
    migrate: Mapping[int, Callable[[Any], Any]] | None,
) -> None:
    """Of `named()`."""
    for one in (name, name if was is None else was):
        if type(one) is not str:
            raise ConfigError(f"named({one!r:.60}): expected the name of a step, as text.")
    if node.kind == "source":
        raise ConfigError(f'the source "{node.name}" has its name already.')
    if type(version) is not int or version < 1:
        raise ConfigError(f'named("{name}", version={version!r:.60}): expected a number, from 1.')
    if (version != 1 or migrate) and node.kind != "process":
        raise ConfigError(
            f'named("{name}", version=…): {node.label} keeps its state as it needs it; only that of process() is yours.'
        )
    for number, function in (migrate or {}).items():
        if number not in range(1, version) or not callable(function):
            raise ConfigError(
                f'named("{name}", migrate={{{number!r:.20}: {function!r:.60}}}): expected functions for versions from 1, below version={version}.'
            )
    node.name, node.was, node.version, node.migrate = name, was, version, dict(migrate or {})


# --- time and keys -------------------------------------------------------------------------------


def event_time_node(
    port: NodePort,
    function: Callable[[Any], Any],
    unit: str,
    disorder: Duration,
    idle: Duration | None,
    ahead: Duration,
) -> FlowNode:
    if unit not in ("s", "ms"):
        raise ConfigError(f'event_time(unit={unit!r:.60}): expected "s" or "ms".')
    disorder_ms = milliseconds_of(disorder, "event_time(disorder=)")
    idle_ms = None if idle is None else milliseconds_of(idle, "event_time(idle=)", 1)
    ahead_ms = milliseconds_of(ahead, "event_time(ahead=)", 1)
    expect_function(function, "event_time()", "a function of a record that gives its time")
    unit_ms = 1 if unit == "ms" else 1000
    label = f"event_time({described(function)}, disorder={_text(disorder_ms)})"

    def make(built: Building) -> Operator:
        return Stamping(
            built.name,
            function,
            unit_ms,
            built.channels,
            disorder_ms,
            idle_ms,
            built.store,
            ahead_ms,
        )

    return FlowNode("event_time", label, (port,), make=make, signature="event_time")


def key_node(port: NodePort, key: Any, repartition: bool) -> FlowNode:
    node = stateless_node(port, "key_by", getter_of(key, "key_by()"))
    node.key = key
    node.may_repartition = bool(repartition)
    return node


# --- windows -------------------------------------------------------------------------------------


def checked_window(
    kind: WindowKind, lateness: Duration, emit: object, late: object, mode: Mode
) -> tuple[int, Emission]:
    """The lateness in milliseconds, and which results are given when.

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
    return lateness_ms, emission


def window_node(
    port: NodePort,
    kind: WindowKind,
    whole: Aggregation[Any, Any],
    emission: Emission,
    lateness_ms: int,
) -> FlowNode:
    """Of `window()` and `aggregate()`, which are one step."""

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
    return FlowNode(
        "window",
        f"{', '.join(details)}: {whole.name}",
        (port,),
        make=make,
        signature=f"window {kind}: {whole.name}",
        open_windows=_reads_windows(kind, whole),
    )


def _reads_windows(kind: WindowKind, whole: Aggregation[Any, Any]) -> ReadsWindows:
    if isinstance(kind, HoppingWindows):
        return partial(open_aligned, kind, whole)
    if isinstance(kind, SessionWindows):
        return partial(open_sessions, whole)
    if isinstance(kind, SlidingWindows):
        return partial(open_trailing, kind, whole)
    return partial(open_filling, whole)


# --- functions with state ------------------------------------------------------------------------


def process_node(
    port: NodePort,
    on_record: Callable[[Any, Any], Iterable[Any]],
    state: Callable[[], Any],
    on_timer: Callable[[Any, str], Iterable[Any]] | None,
) -> FlowNode:
    expect_function(on_record, "process()", "a function of a context and a record")
    expect_function(state, "process(state=)", "a class or a function that makes a state")
    if on_timer is not None:
        of = "a function of a context and a timer's name"
        expect_function(on_timer, "process(on_timer=)", of)

    def on_port(context: Any, port: int, value: Any) -> Iterable[Any]:
        return on_record(context, value)

    def on_time(context: Any, name: str) -> Iterable[Any]:
        return () if on_timer is None else on_timer(context, name)

    def make(built: Building) -> Operator:
        return Processing(built.name, on_port, on_time, state, built.store, gives_apart=True)

    label = f"process({described(on_record)})"
    return FlowNode("process", label, (port,), make=make, signature="process")


def dedup_node(port: NodePort, by: str | Callable[[Any], Any], within: Duration) -> FlowNode:
    function = getter_of(by, "dedup()")
    within_ms = milliseconds_of(within, "dedup(within=)")
    label = f"dedup({described(function)}, within={_text(within_ms)})"
    return _stateful("dedup", label, Deduplication(function, within_ms), (port,))


def pattern_node(
    port: NodePort, steps: tuple[Callable[[Any], object], ...], within: Duration
) -> FlowNode:
    if not steps:
        raise ConfigError("pattern(): expected functions of a record, one for each step.")
    for step in steps:
        expect_function(step, "pattern()")
    within_ms = milliseconds_of(within, "pattern(within=)")
    names = " → ".join(map(described, steps))
    label = f"pattern({names}, within={_text(within_ms)})"
    node = _stateful("pattern", label, Following(steps, within_ms), (port,))
    node.signature = f"pattern of {len(steps)}"
    return node


def _stateful(
    kind: str,
    label: str,
    function: TableJoin | AsOfJoin | IntervalJoin | Following | Deduplication,
    inputs: tuple[NodePort, ...],
    timed_by: tuple[int, ...] | None = None,
) -> FlowNode:
    """A step that keeps something of each key, by a function of ours."""

    def make(built: Building) -> Operator:
        is_kept = getattr(function, "is_kept", None)
        operator = Processing(
            built.name,
            function.on_record,
            function.on_timer,
            function.make,
            built.store,
            is_kept,
            replaces_states=isinstance(function, TableJoin),
        )
        operator.timed_by = timed_by
        return operator

    return FlowNode(kind, label, inputs, make=make, signature=kind)


# --- what may be asked for -----------------------------------------------------------------------


def table_output(port: NodePort, name: str) -> FlowOutput:
    """Of `as_table()`."""
    _expect_method_name(name, "as_table")
    node = FlowNode(
        KIND,
        f"as_table({name})",
        (port,),
        make=lambda built: Tabling(built.name, built.store),
        signature="table",
        name=table_step(name),
    )
    return FlowOutput(table_step(name), (node, MAIN), table=name)


def asked_output(port: NodePort, name: str, kind: str) -> FlowOutput:
    """Of `as_state()`, which may stand behind steps of this kind."""
    _expect_method_name(name, "as_state")
    node, number = port
    if node.kind != kind or number != MAIN:
        raise ConfigError(
            f"as_state({name}): {node.label} keeps nothing of a key that can be told. It comes directly behind {kind}()."
        )
    asking = FlowNode(
        STATE_KIND,
        f"as_state({name})",
        (port,),
        make=lambda built: AskedStep(built.name),
        name=state_output(name),
    )
    return FlowOutput(state_output(name), (asking, MAIN), state=name)


def _expect_method_name(name: object, where: str) -> None:
    if type(name) is not str or not name.isidentifier() or name.startswith("_"):
        raise ConfigError(
            f"{where}({name!r:.60}): expected a name of letters, digits and _, as it is part of a method's."
        )


# --- joins ---------------------------------------------------------------------------------------

Sides = tuple[NodePort, NodePort]
"""The ports of the stream that is joined, and of the other."""


def table_join_node(sides: Sides, how: JoinKind) -> FlowNode:
    expect_how(how, ("inner", "left"), "join_table")
    return _stateful("join_table", f"join_table({how})", TableJoin(how), sides, timed_by=(0,))


def as_of_join_node(
    sides: Sides, how: JoinKind, tolerance: Duration | None, lateness: Duration
) -> FlowNode:
    where = "join_as_of"
    expect_how(how, ("inner", "left"), where)
    tolerance_ms = None if tolerance is None else milliseconds_of(tolerance, f"{where}(tolerance=)")
    join = AsOfJoin(how, tolerance_ms, milliseconds_of(lateness, f"{where}(lateness=)"))
    return _stateful(where, f"{where}({how})", join, sides)


def interval_join_node(
    sides: Sides, how: JoinKind, before: Duration, after: Duration, lateness: Duration
) -> FlowNode:
    where = "join_interval"
    expect_how(how, ("inner", "left", "full"), where)
    before_ms = milliseconds_of(before, f"{where}(before=)")
    after_ms = milliseconds_of(after, f"{where}(after=)")
    join = IntervalJoin(how, before_ms, after_ms, milliseconds_of(lateness, f"{where}(lateness=)"))
    label = f"{where}({how}, before={_text(before_ms)}, after={_text(after_ms)})"
    return _stateful(where, label, join, sides)


def expect_how(how: str, known: tuple[str, ...], where: str) -> None:
    if how not in known:
        raise ConfigError(f"{where}(): how={how!r:.60}: expected {' or '.join(map(repr, known))}.")


def _text(milliseconds: int) -> str:
    return duration_text(milliseconds / 1000)
