"""Flows in a test: virtual time, partitions interleaved by a seed, and crashes at any point, in one process and without a broker.

    driver = FlowDriver({"hourly": delays}, seed=7, crash_rate=0.2)
    driver.append("flights.departed", flights, times=[…], batch=50)
    driver.end()
    assert driver.given("hourly") == […]

It does what a runner does, over logs and a store in memory: takes entries in some order, commits state, positions and an outbox in one
write, publishes the outbox, and after a crash starts from what was written. What is to go to a sink is looked at, and not brought there; what is to
come from a source the test appends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from random import Random
from typing import Any, Final, NamedTuple, TypedDict, TypeVar, Unpack, overload

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError
from mycelia.flow import (
    Engine,
    FlowHandler,
    FlowOutput,
    FlowPlan,
    Given,
    MemoryStore,
    RejectedRecord,
    SinkRecord,
    Stream,
)
from mycelia.flow.asked_state import MOST_WINDOWS, state_output
from mycelia.flow.described_flow import AnySource, described_flow
from mycelia.flow.outgoing import Outgoing
from mycelia.flow.outputs import checked_outputs
from mycelia.flow.results import moment_of
from mycelia.flow.sources.events import SeenIds
from mycelia.flow.sources.single import SingleSource
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.flow.state_migrations import migrated
from mycelia.flow.tables import rows_of, table_step
from mycelia.logs import Log
from mycelia.runtime import find_entrypoints
from mycelia.testing.driven_logs import DrivenEntry, DrivenLogs
from mycelia.wire import SerializerRegistry

__all__ = ["DrivenRecord", "FlowDriver"]

T = TypeVar("T")

_POSITIONS: Final = "~driver-positions"
_SEEN: Final = "~driver-seen"
_OUTBOX: Final = "~driver-outbox"


class DrivenRecord(NamedTuple):
    """What left the flow: its id, and the record. One that is published again has the same id."""

    id: str
    key: Any
    time_ms: int
    value: Any


class _Told(TypedDict, total=False):
    """What is told of records that are appended; see `FlowDriver.append()`."""

    times: Sequence[int] | None
    keys: Sequence[Any] | None
    ids: Sequence[str] | None
    partition: int | None
    batch: int


class _Crash(Exception):
    """The process dies here."""


class FlowDriver:
    """Runs a flow over records that a test appends.

    Args:
        outputs: the streams that leave the flow, by name: `Stream`s, or what `to()`, `emit()`, `as_table()` and `as_state()` gave; or one or several of the
            latter, which have names of their own.
        partitions: of each source, or of the sources by name.
        seed: decides in which order partitions are read, when is committed, and where it crashes. The order does not depend on
            crashes: the same seed without them reads the same.
        crash_rate: how likely a crash is at each of the points where one may come: after a batch, before and after a commit, among what is published.
        after: another driver, which this one goes on from: with its state as of its last commit, its sources and its time. As when a service is started anew with
            another version of its code.
        dropped: as `@flow(dropped=…)`.

    Raises:
        StateIncompatible: the state of `after` is none of this flow's, and nothing says how it becomes one.
    """

    def __init__(
        self,
        outputs: Mapping[str, Stream[Any] | FlowOutput] | Sequence[FlowOutput] | FlowOutput,
        *,
        partitions: int | Mapping[str, int] = 1,
        seed: int = 0,
        crash_rate: float = 0.0,
        after: FlowDriver | None = None,
        dropped: Collection[str] = (),
        sources: Sequence[AnySource] = (),
    ) -> None:
        if not isinstance(outputs, Mapping):
            outputs = {one.name: one for one in checked_outputs(outputs, "what is driven")}
        self.plan = FlowPlan({name: stream.port for name, stream in outputs.items()})
        self.now_ms: int = 0 if after is None else after.now_ms
        self.crashes = 0
        """How often it crashed."""
        self.published: list[tuple[str, DrivenRecord]] = []
        """All that was published, with its output's name; what a crash made it publish again is there again."""
        self.rejected: list[RejectedRecord] = []
        """What the flow went on without; perhaps more than once, where it crashed after it."""
        self.repeated = 0
        """Messages of queues that were left out as their ids had come before; those too perhaps more than once."""
        self.store: MemoryStore = MemoryStore() if after is None else deepcopy(after.store)
        self._outputs = {
            name: _named(name, one) for name, one in outputs.items() if isinstance(one, FlowOutput)
        }
        self._logs = DrivenLogs(
            {
                source: range(
                    partitions if isinstance(partitions, int) else partitions.get(source, 1)
                )
                for source in self.plan.sources
            },
            {one.name: one for one in sources},
        )
        if after is not None:
            self._logs.go_on_from(after._logs)
        self._seed = seed
        self._crash_rate = crash_rate
        self._chance = Random(f"{seed} crashes")
        self._uncommitted: list[Given] = []
        self.store.write(migrated(self.store, self.plan, "in this driver", dropped))
        self._start()

    @classmethod
    def of(
        cls,
        service: object,
        method: str | None = None,
        *,
        partitions: int | Mapping[str, int] | None = None,
        seed: int = 0,
        crash_rate: float = 0.0,
        after: FlowDriver | None = None,
    ) -> FlowDriver:
        """Of a service's method under `@flow`, as it is declared: sources with their keys, times and partitions, sinks, dropped steps.

        Args:
            service: its class, or an instance, with what `async` steps need of it.
            method: which; the only one by default.

        Raises:
            ConfigError: there is no such method, or several, or it describes no flow.
        """
        class_ = service if isinstance(service, type) else type(service)
        declared = {
            name: one
            for name, one in find_entrypoints(class_)
            if isinstance(one, FlowHandler) and method in (None, name)
        }
        if len(declared) != 1:
            raise ConfigError(
                f"{class_.__qualname__}: it has {len(declared)} methods under @flow{f' called {method}' if method else ''}, and one is driven. "
                "Name it: FlowDriver.of(Service, method)."
            )
        ((name, flow),) = declared.items()
        described = described_flow(class_() if service is class_ else service, name, flow)
        counts = {one.name: one.partitions for one in flow.sources}
        if partitions is not None:
            counts |= (
                dict.fromkeys(counts, partitions) if isinstance(partitions, int) else partitions
            )
        return cls(
            {one.name: one for one in described.outputs},
            partitions=counts,
            seed=seed,
            crash_rate=crash_rate,
            after=after,
            dropped=flow.dropped,
            sources=flow.sources,
        )

    # --- what a test does ----------------------------------------------------------------------------

    @overload
    def append(self, source: Log[T], values: Sequence[T], **told: Unpack[_Told]) -> None: ...
    @overload
    def append(
        self, source: SingleSource[T], values: Sequence[T], **told: Unpack[_Told]
    ) -> None: ...
    @overload
    def append(self, source: str, values: Sequence[Any], **told: Unpack[_Told]) -> None: ...
    def append(
        self,
        source: str | AnySource,
        values: Sequence[Any],
        *,
        times: Sequence[int] | None = None,
        keys: Sequence[Any] | None = None,
        ids: Sequence[str] | None = None,
        partition: int | None = None,
        batch: int = 100,
    ) -> None:
        """Put records at the end of a source, in entries of `batch`: what is written to a log, published as events, added to a table, given by an iterator.

        Args:
            source: its name; or itself, whose keys and times are those of the records then, as they are where the driver knows it by `of()`.
            times: of the records, if their source does not say; `now_ms` by default. See `Stream.event_time()`.
            keys: the same.
            ids: of messages, for `events()` and `queue()`: one that had come before is left out.
            partition: where they are put; by default where the keys of a known log have them, else in the first.

        Raises:
            ConfigError: there is no such partition.
            ContractError: a value has no key, or no time, where its source says that it has.
        """
        self._logs.append(source, values, times, keys, ids, partition, batch, self.now_ms)

    def run(self) -> None:
        """Until all that was appended is read, committed and published, through all crashes."""
        while True:
            while self._unread():
                self._survive(self._read_some)
            if self._survive(self._commit):
                return

    def end(self) -> None:
        """Let all sources end, and run: all windows close."""
        self._logs.end()
        self.run()

    def advance(self, duration: Duration) -> None:
        """Let time on the wall come by, after all that was appended: timers of processing time, partitions that fall silent, `ticks()` that are known."""
        self.run()
        until = self.now_ms + round(seconds_of(duration, "advance()") * 1000)
        for source, moments in self._logs.ticks(self.now_ms, until).items():
            self.append(source, [moment_of(at) for at in moments], times=moments)
        self.now_ms = until
        self.run()
        while not self._survive(self._tick):
            pass

    def table(self, name: str) -> dict[Any, Any]:
        """What a table (`KeyedStream.as_table()`) says of each key, as of the last commit."""
        step = table_step(name)
        if step not in self.plan.signatures():
            raise ConfigError(f'the flow has no table "{name}".')
        return {key: value for key, _, value in rows_of(self.store, step)}

    def state(self, name: str) -> dict[Any, Any]:
        """What `as_state()` tells of each key, as of the last commit: the state that a function keeps, or a list of `OpenWindow`."""
        for node, named in self.plan.names.items():
            if named == state_output(name):
                ((step, _),) = node.inputs
                break
        else:
            raise ConfigError(f'the flow has no state that is asked for as "{name}".')
        of_step = self.store.scan(self.plan.names[step])
        kept = {decode_state(key): decode_state(data) for key, data in of_step}
        if (read := step.open_windows) is None:
            return kept
        found = {key: read(plain, MOST_WINDOWS)[0] for key, plain in kept.items()}
        return {key: windows for key, windows in found.items() if windows}

    def records(self, output: str) -> list[DrivenRecord]:
        """What left by an output, each id once, in the order in which it was published first.

        Raises:
            AssertionError: one id was given to two records.
            ConfigError: the flow has no output of that name.
        """
        if output not in self.plan.outputs:
            raise ConfigError(
                f'the flow has no output "{output}"; there are {", ".join(self.plan.outputs)}.'
            )
        found: dict[str, DrivenRecord] = {}
        for name, record in self.published:
            if name == output:
                first = found.setdefault(record.id, record)
                assert encode_state(first) == encode_state(record), (
                    f"{record.id} was published as {first} and as {record}"
                )
        return list(found.values())

    def given(self, output: str) -> list[Any]:
        """The values of `records()`."""
        return [record.value for record in self.records(output)]

    def delivered(self, output: str) -> list[SinkRecord[Any]]:
        """What the sink of an output would have been given, in order. After a crash some come again, with the same ids, as they do in a service; not if the
        sink leaves out by itself what it has had, as tables and files do.

        Raises:
            ConfigError: the output is no sink's.
        """
        of = self._outputs.get(output)
        if of is None or of.sink is None:
            raise ConfigError(f'"{output}" is no output of this flow that goes to a sink.')
        came = (
            self.records(output)
            if of.sink.leaves_out_repeats
            else [record for name, record in self.published if name == output]
        )
        return [SinkRecord(*record) for record in came]

    # --- what a runner does --------------------------------------------------------------------------

    def _start(self) -> None:
        """From what is written. What was to be published is published, perhaps again."""
        self._engine = Engine(self.plan, self._logs.partitions, store=self.store)
        (written,) = self.store.read(_POSITIONS, [b""])
        self._positions: dict[tuple[str, int], int] = dict.fromkeys(self._logs.entries, 0)
        if written is not None:
            kept = decode_state(written)
            self._positions |= {one: at for one, at in kept.items() if one in self._positions}
        seen = dict(self.store.scan(_SEEN))
        self._seen = {
            name: SeenIds(window, seen.get(name.encode(), b""))
            for name, window in self._logs.windows.items()
        }
        self._uncommitted = []

    def _unread(self) -> list[tuple[str, int]]:
        entries = self._logs.entries
        return [one for one, log in entries.items() if self._positions[one] < len(log)]

    def _survive(self, step: Callable[[], None]) -> bool:
        """Take a step; whether it was taken to its end. If not, what was written is where it goes on."""
        try:
            step()
        except _Crash:
            self.crashes += 1
            self._start()
            while not self._survive(self._publish):
                pass
            return False
        return True

    def _tick(self) -> None:
        self._uncommitted += self._engine.tick(self.now_ms)
        self._commit()

    def _may_crash(self) -> None:
        if self._chance.random() < self._crash_rate:
            raise _Crash

    def _read_some(self) -> None:
        """An entry of one of the partitions; now and then a commit. Both are told by how many entries were read before."""
        number = sum(self._positions.values())
        chance = Random(f"{self._seed} {number}")
        one = chance.choice(self._unread())
        source, partition = one
        entry = self._fresh(source, self._logs.entries[one][self._positions[one]])
        if entry.is_end:
            given = self._engine.end(source, partition, now_ms=self.now_ms)
        else:
            keys = None if entry.keys is None else list(entry.keys)
            given = self._engine.feed(
                source,
                partition,
                list(entry.values),
                list(entry.times),
                keys,
                now_ms=self.now_ms,
            )
        self._uncommitted += given
        self.rejected += self._engine.take_rejected()
        self._positions[one] += 1
        self._may_crash()
        if chance.random() < 0.4:
            self._commit()

    def _fresh(self, source: str, entry: DrivenEntry) -> DrivenEntry:
        """Without messages that had come before."""
        if entry.ids is None:
            return entry
        seen = self._seen.get(source)
        if seen is None:  # known since it was appended to
            seen = self._seen[source] = SeenIds(self._logs.windows[source])
        at = [index for index, one in enumerate(entry.ids) if seen.is_new(one)]
        self.repeated += len(entry.ids) - len(at)
        return DrivenEntry(
            [entry.values[one] for one in at],
            [entry.times[one] for one in at],
            None if entry.keys is None else [entry.keys[one] for one in at],
        )

    def _commit(self) -> None:
        self._check()
        outbox = {
            encode_state([output, number]): encode_state(list(record))
            for output, number, record in self._outgoing()
        }
        changes = self._engine.take_changes()
        changes[_POSITIONS] = {b"": encode_state(self._positions)}
        changes[_SEEN] = {name.encode(): one.to_bytes() for name, one in self._seen.items()}
        changes[_OUTBOX] = dict(outbox)
        self._may_crash()
        self.store.write(changes)
        self._uncommitted = []
        self._may_crash()
        self._publish()

    def _check(self) -> None:
        """Raise what a commit in a service raises over records that their logs, events or sinks cannot carry."""
        serializer = SerializerRegistry().by_name(None)
        outgoing = Outgoing(self._outputs.values(), "driver", 0, {}, "driver.events", serializer)
        outgoing.messages(self._uncommitted, self.now_ms)

    def _outgoing(self) -> list[tuple[str, int, DrivenRecord]]:
        return [
            (given.output, given.first_number + at, DrivenRecord(*record))
            for given in self._uncommitted
            for at, record in enumerate(
                zip(given.ids(), given.keys, given.times, given.values, strict=True)
            )
        ]

    def _publish(self) -> None:
        rows = {(*decode_state(key),): (key, data) for key, data in self.store.scan(_OUTBOX)}
        crashes = bool(rows) and self._chance.random() < self._crash_rate
        dies_after = self._chance.randrange(len(rows)) if crashes else None
        for number, row in enumerate(sorted(rows)):
            self.published.append((row[0], DrivenRecord(*decode_state(rows[row][1]))))
            if number == dies_after:
                raise _Crash
        self.store.write({_OUTBOX: {key: None for key, _ in rows.values()}})


def _named(name: str, output: FlowOutput) -> FlowOutput:
    """The output under the name that the test has given it."""
    if output.name == name:
        return output
    return FlowOutput(
        name,
        output.port,
        log=output.log,
        event_type=output.event_type,
        sink=output.sink,
        table=output.table,
        state=output.state,
    )
