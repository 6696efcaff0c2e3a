"""One partition of a stage, run by its owner: an engine over its state, and what has been taken since the last commit.

No clock and no broker: entries go in, messages come out of a commit. Calls block, for the state's sake and the functions'; they are made in a
thread, one at a time. But for `write()`: while it waits for the disk, the engine takes what comes next.

What has been taken since the last commit is kept, so that records over which a function raises can be left out without reading anything
again: the engine begins anew from the last commit, and is given the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import uuid4

from mycelia.amqp import Message
from mycelia.errors import FlowError, FlowFunctionError, UnserializableValueError, describe
from mycelia.flow.async_steps import RunsCoroutines, in_own_loop
from mycelia.flow.engine import Engine, Given, RejectedRecord
from mycelia.flow.graph import FlowPlan
from mycelia.flow.inflow import FlowSource, Taken
from mycelia.flow.operators import FiredTimer
from mycelia.flow.outgoing import Outgoing, Unfit, UnfitResults
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.partition_state import PartitionState
from mycelia.flow.pending_store import PendingStore
from mycelia.flow.relay_log import KeyedValue, Mark, Relay, Relaying, RelayWord, word_of
from mycelia.flow.rows_beside import RowsBeside
from mycelia.flow.sinks.sink import SinkRecord, SinkRefused
from mycelia.flow.state_codec import encode_state
from mycelia.flow.state_file import StateCommit
from mycelia.flow.state_migrations import migrated
from mycelia.logs import FaultyRecord, Log, LogEntry, LogPosition
from mycelia.logs.value_codec import ValueCodec
from mycelia.wire import Serializer

__all__ = [
    "PartitionRun",
    "PreparedCommit",
    "RecordFailed",
    "RecordsFailed",
    "Skipped",
    "StageDescription",
    "TimerFailed",
]

_PLAIN: Final[ValueCodec[Any]] = ValueCodec(None, "a record")

Skipped = set[tuple[str, int, int]]
"""Records that are left out: by source, offset of the entry, and index in it."""


class StageDescription:
    """What is run of each partition of a stage: made once, when the service starts.

    Attributes:
        group: the flow's name.
        name: the stage's, part of all ids; a flow of one stage has the group's.
        leased_as: what its leases and its state are called by, beside the group: a log that it reads, by default the first.
        plan: its part of the flow.
        sources: by the plan's names for them, those that are no cuts.
        relays: what it reads from stages before it, by cut.
        outputs: those of the flow that are in it.
        gives: what it gives to stages behind it.
        exchange: that of the service's events.
    """

    __slots__ = (
        "dropped",
        "exchange",
        "gives",
        "group",
        "leased_as",
        "name",
        "outputs",
        "plan",
        "relays",
        "serializer",
        "sources",
    )

    def __init__(
        self,
        group: str,
        plan: FlowPlan,
        sources: Mapping[str, FlowSource],
        outputs: Sequence[FlowOutput],
        exchange: str,
        serializer: Serializer,
        *,
        name: str | None = None,
        leased_as: str | None = None,
        relays: Mapping[str, Relay] | None = None,
        gives: Sequence[Relay] = (),
        dropped: Collection[str] = (),
    ) -> None:
        self.group = group
        self.name = name or group
        self.plan = plan
        self.sources = dict(sources)
        self.relays = dict(relays or {})
        self.outputs = tuple(outputs)
        self.gives = tuple(gives)
        self.dropped = dropped
        """Steps that are gone, and their state with them."""
        self.leased_as = leased_as or next(iter(self.reads.values())).name
        self.exchange = exchange
        self.serializer = serializer

    @property
    def reads(self) -> dict[str, FlowSource]:
        """All that it reads, by the plan's names."""
        cuts: dict[str, FlowSource] = {name: one.log for name, one in self.relays.items()}
        return {name: (self.sources | cuts)[name] for name in self.plan.sources}

    @property
    def first(self) -> str:
        """By the plan's name, what it reads first: what its leases are called by."""
        reads = self.reads
        return next(
            (name for name, one in reads.items() if one.name == self.leased_as), next(iter(reads))
        )

    @property
    def partitions(self) -> int:
        """Of the stage; a source with fewer has none in the later ones."""
        return max(source.partitions for source in self.reads.values())

    def body_of(self, source: str, entry: LogEntry[Any], at: int) -> bytes:
        """A record of a source as msgpack, for whoever looks at it as a dead letter."""
        value = entry.values[at]
        if source not in self.relays:
            of = self.sources[source]
            codec = of.shape.codec if isinstance(of, Log) else _PLAIN
            return codec.encode([value])
        if type(value) is KeyedValue:
            value = value.value
        try:
            return _PLAIN.encode([value])
        except UnserializableValueError:
            return encode_state(value)


class RecordFailed(FlowError):
    """A record that a flow cannot take; where a function raised over it, the cause is `__cause__`.

    Attributes:
        source: the log that it is from.
        entry: the one that it is of.
        at: where in the entry's columns.
        index: its place in the entry as it was written.
        operator: the step, and `key` the record's.
    """

    def __init__(
        self,
        source: str,
        entry: LogEntry[Any],
        at: int,
        text: str,
        operator: str,
        key: object = None,
    ) -> None:
        super().__init__(text)
        self.source = source
        self.entry = entry
        self.at = at
        self.index = entry.indexes[at]
        self.operator = operator
        self.key = key

    @property
    def place(self) -> tuple[str, int, int]:
        return self.source, self.entry.offset, self.index


class RecordsFailed(FlowError):
    """Records over which functions raised: one, or all of a turn. The run goes on by `PartitionRun.again()`."""

    def __init__(self, failed: Sequence[RecordFailed]) -> None:
        super().__init__(str(failed[0]))
        self.failed = list(failed)


class TimerFailed(FlowError):
    """The function of a timer raised; the cause is `__cause__`. The run goes on by `PartitionRun.again()`.

    Attributes:
        timer: which; `operator` and `key` are its.
    """

    def __init__(self, stage: str, partition: int, timer: FiredTimer, cause: BaseException) -> None:
        name, clock, time_ms, _ = timer.timer
        super().__init__(
            f'stage "{stage}", partition {partition}, operator "{timer.operator}", key {timer.key!r:.80}, timer "{name}" of {clock} time '
            f"{time_ms}: {describe(cause)}"
        )
        self.timer = timer
        self.operator = timer.operator
        self.key = timer.key


class _Turn(NamedTuple):
    """What the engine was given at once."""

    taken: Taken
    now_ms: int


_Places = list[tuple[LogEntry[Any], Sequence[int]]]
"""Of a batch, the entries that it was made of, with the places of their records."""


class PreparedCommit(NamedTuple):
    """What a commit writes, made when the engine stood still; and how the engine stood then."""

    writes: StateCommit
    records: int
    """Taken since the one before."""
    watermarks_ms: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    gave: Mapping[str, list[int]]


class PartitionRun:
    """Becomes the owner of a partition's state, and goes on from there. Closes the state, also if it raises.

    Args:
        epoch: the lease's.
        skipped: records that are left out; the run adds those that it has told as rejected.
        collects: whether all records of a turn that fail are told at once.
        run: runs what `async` steps await.

    Raises:
        StateUnavailable, StateIncompatible: the state cannot be used.
    """

    def __init__(
        self,
        description: StageDescription,
        partition: int,
        state: PartitionState,
        epoch: int,
        skipped: Skipped | None = None,
        *,
        collects: bool = False,
        run: RunsCoroutines = in_own_loop,
    ) -> None:
        self._run = run
        self.partition = partition
        self.state = state
        self.skipped: Skipped = set() if skipped is None else skipped
        self.passed_over: set[FiredTimer] = set()
        """Timers that have been given up."""
        self._description = description
        self._collects = collects
        try:
            self.left_over = self.state.claim(epoch)
            """What may not have been published when the last owner went."""
            checkpoint = self.state.checkpoint
            self._name = f"{description.name}/{checkpoint.generation}/{partition}"
            self._sequences = dict(checkpoint.sequences)
            self._migrate()
            self._outgoing = Outgoing(
                description.outputs,
                self._name,
                partition,
                self._sequences,
                description.exchange,
                description.serializer,
            )
            self.rows = RowsBeside(self.state, description.outputs, self._name)
            """What goes into tables with the commit itself."""
            self._relaying = Relaying(description.gives, self._name, partition, self._sequences)
            self._store = PendingStore(self.state)
            self._engine = self._new_engine()
        except BaseException:
            self.state.close()
            raise
        self._given: list[Given] = []
        self._turns: list[_Turn] = []
        self._rejected: list[RecordFailed] = []
        self._keyless: list[RejectedRecord] = []
        self._keyless_taken = 0
        """Since the last commit; what is taken again tells of them again."""
        self._left_out: set[str] = set()
        """Ids of results that cannot leave."""
        self._places: dict[tuple[str, object], _Places] = {}
        self._committed: dict[str, int] = {}
        """By source, the offset before which all is committed."""
        self.uncommitted = 0
        """Records taken since the last commit was prepared."""
        self.uncommitted_bytes = 0
        """Of those, as they came."""

    def _migrate(self) -> None:
        """Bring the state to what the flow, as it is described now, expects of it; in a commit of its own."""
        of = self._description
        if changes := migrated(self.state, of.plan, self._name, of.dropped):
            self.state.commit(StateCommit(changes, self.positions, self._sequences))

    def _new_engine(self) -> Engine:
        description, partition = self._description, self.partition
        partitions: dict[str, Sequence[int]] = {
            name: range(relay.writers) for name, relay in description.relays.items()
        }
        for name, source in description.sources.items():
            partitions[name] = [partition] if partition < source.partitions else []
        return Engine(
            description.plan,
            partitions,
            store=self._store,
            flow=self._name,
            collects=self._collects,
            run=self._run,
            passed_over=self.passed_over,
        )

    # --- what it knows ---------------------------------------------------------------------------

    @property
    def positions(self) -> dict[str, LogPosition]:
        """Where to go on, by source, as of the last commit; of those that are not here, nothing has been taken."""
        return self.state.checkpoint.positions_of(next(iter(self._description.reads)))

    @property
    def offset(self) -> int | None:
        """How far it has come, as one number that never goes back: the sum of the offsets. None: nothing has been taken."""
        positions = self.positions
        return sum(one.offset for one in positions.values()) if positions else None

    @property
    def flow(self) -> str:
        """The first part of the ids of what is given."""
        return self._name

    def has_news(self, now_ms: int) -> bool:
        """Whether something waits for the next commit to leave: records, word of event time for the stages behind, or what a sink asks for."""
        return (
            bool(self._given or self.passed_over)
            or self._relaying.has_word(self._marks(), now_ms)
            or self._outgoing.is_due(now_ms)
        )

    def _marks(self) -> dict[str, Mark]:
        engine = self._engine
        return {
            relay.name: (engine.watermark_of(relay.name), engine.silence_of(relay.name))
            for relay in self._description.gives
        }

    # --- turns -----------------------------------------------------------------------------------

    def feed(self, taken: Taken, now_ms: int) -> None:
        """Take entries, of all sources as one batch; without any, let time on the wall come by.

        Raises:
            RecordsFailed: functions raised over records. `again()` goes on, without those that are in `skipped` by then.
            TimerFailed: that of a timer raised, where those that fail are collected. The same, without those in `passed_over`.
            FlowFunctionError: a function raised, and over which record cannot be said. This run is spent.
        """
        turn = _Turn(taken, now_ms)
        if taken or self._turns:
            self._turns.append(turn)
        self.uncommitted_bytes += sum(one.size for entries in taken.values() for one in entries)
        try:
            self._take(turn)
        except TimerFailed:
            if not self._turns:  # one of the wall, while nothing comes
                self._turns.append(turn)
            raise

    def tick(self, now_ms: int) -> None:
        """Let time on the wall come by. Raises as `feed()`."""
        self.feed({}, now_ms)

    def again(self) -> None:
        """Begin from the last commit, which is written, and take what has been taken since, without what is in `skipped`. Raises as `feed()`."""
        self._engine = self._new_engine()
        self._given = []
        self._keyless = []
        self.uncommitted = 0
        for turn in self._turns:
            self._take(turn)
        del self._keyless[: self._keyless_taken]

    def _take(self, turn: _Turn) -> None:
        engine = self._engine
        self._places = {}
        for source, entries in turn.taken.items():
            relay = self._description.relays.get(source)
            if relay is None:
                self._put(source, self.partition, entries, turn.now_ms)
            else:
                self._put_relayed(source, relay, entries, turn.now_ms)
        try:
            self._given += engine.tick(turn.now_ms)
        except FlowFunctionError as exc:
            failed: dict[tuple[str, int, int], RecordFailed] = {}
            for error in (exc, *exc.also):
                if (one := self._failed(error)) is not None:
                    failed.setdefault(one.place, one)  # it may fail in several steps
            if failed:  # what else fails in this turn may fail for their sake
                raise RecordsFailed(list(failed.values())) from exc
            if exc.timer is not None and self._collects:
                timer = FiredTimer(exc.operator, exc.key, exc.timer)
                of_function = exc.__cause__ or exc
                name = self._description.name
                raise TimerFailed(name, self.partition, timer, of_function) from of_function
            raise
        for rejected in engine.take_rejected():
            told = self._told(rejected)
            if told is not None:
                self.skipped.add(told.place)
                self._rejected.append(told)
            else:
                self._keyless.append(rejected)

    def _put(
        self, source: str, partition: int, entries: Sequence[LogEntry[Any]], now_ms: int
    ) -> None:
        values: list[Any] = []
        keys: list[Any] = []
        times: list[Any] = []
        places: _Places = []
        skipped = self.skipped
        relay = self._description.relays.get(source)
        for entry in entries:
            at: list[int] | range = range(len(entry.values))
            if skipped and any((source, entry.offset, index) in skipped for index in entry.indexes):
                at = [n for n in at if (source, entry.offset, entry.indexes[n]) not in skipped]
                values += [entry.values[n] for n in at]
                keys += [entry.keys[n] for n in at]
                times += [entry.times[n] for n in at]
            else:
                values += entry.values
                keys += entry.keys
                times += entry.times
            places.append((entry, at))
        if relay is not None:
            keys, values = relay.columns(values)
        if None in times:  # a plain message whose writer told none
            times = [now_ms if time is None else time for time in times]
        self.uncommitted += len(values)
        self._places[source, partition] = places
        self._engine.put(source, partition, values, times, keys)

    def _put_relayed(
        self, source: str, relay: Relay, entries: Sequence[LogEntry[Any]], now_ms: int
    ) -> None:
        """Of each writer's entries the records, and after them what was told last."""
        by_writer: dict[int, list[LogEntry[Any]]] = {}
        words: dict[int, RelayWord] = {}
        for entry in entries:
            word = word_of(entry, relay.writers)
            if word is None:
                continue  # told by `strange()`
            by_writer.setdefault(word.writer, []).append(entry)
            if word.watermark is not None:
                words[word.writer] = word
            elif word.writer in words:
                words[word.writer] = words[word.writer]._replace(silence="")
        for writer, its in by_writer.items():
            self._put(source, writer, its, now_ms)
        for writer, word in words.items():
            assert word.watermark is not None
            self._engine.put_relay(source, writer, word.watermark, word.silence)

    def strange(self, source: str, entry: LogEntry[Any]) -> FaultyRecord | None:
        """What is wrong with an entry of a log between stages that the flow has not written; None if it has."""
        relay = self._description.relays.get(source)
        if relay is None or entry.faults or word_of(entry, relay.writers) is not None:
            return None
        reason = f'log "{relay.log.name}" is a flow\'s own, and no stage of the flow wrote this'
        return FaultyRecord(None, reason)

    # --- what it cannot take ---------------------------------------------------------------------

    def take_rejected(self) -> list[RecordFailed]:
        """The records that the flow went on without since the last time: of no key, or of an impossible time. They are skipped from now on."""
        rejected, self._rejected = self._rejected, []
        return rejected

    def take_keyless(self) -> list[Unfit]:
        """Results without a key, which have no place in a log, since the last time; with the steps that refused them."""
        keyless, self._keyless = self._keyless, []
        self._keyless_taken += len(keyless)
        return [
            (
                one.operator,
                SinkRecord(f"{self._name}/{one.operator}/{uuid4().hex}", None, 0, one.value),
                SinkRefused(
                    f'stage "{self._description.name}", operator "{one.operator}", {one.reason}'
                ),
            )
            for one in keyless
        ]

    def _failed(self, error: FlowFunctionError) -> RecordFailed | None:
        cause = error if error.__cause__ is None else error.__cause__
        origin = self._engine.origin_of(error.channel)
        text = f"key {error.key!r:.80}: {describe(cause)}"
        failed = self._at(origin, error.position, error.operator, text, error.key)
        if failed is not None:
            failed.__cause__ = error
        return failed

    def _told(self, rejected: RejectedRecord) -> RecordFailed | None:
        if rejected.source is None:
            return None
        origin = rejected.source, rejected.partition
        return self._at(origin, rejected.position, rejected.operator, rejected.reason)

    def _at(
        self,
        origin: tuple[str, object] | None,
        position: int | None,
        operator: str,
        text: str,
        key: object = None,
    ) -> RecordFailed | None:
        """The record at `position` of a batch, with what is wrong with it; None where it is no single one."""
        if position is None or origin is None:
            return None
        source, _ = origin
        for entry, places in self._places.get(origin, ()):
            if position < len(places):
                at = places[position]
                where = (
                    f'stage "{self._description.name}", log "{self._description.reads[source].name}", partition {self.partition}, '
                    f'offset {entry.offset}, record {entry.indexes[at]}, operator "{operator}"'
                )
                return RecordFailed(source, entry, at, f"{where}, {text}", operator, key)
            position -= len(places)
        return None

    # --- commits ---------------------------------------------------------------------------------

    def prepare(self, positions: Mapping[str, LogPosition], now_ms: int) -> PreparedCommit:
        """Make the next commit of all that was taken. After it the next turn may be taken.

        Raises:
            UnfitResults: some cannot leave. The same may be tried again, after `leave_out()`.
            StateIncompatible: it cannot be written down. This run is spent.
        """
        committed = self._committed
        self.skipped -= {one for one in self.skipped if one[1] < committed.get(one[0], 0)}
        messages = self._messages(now_ms)
        engine, records = self._engine, self.uncommitted
        changes = engine.take_changes()
        self._store.expect(changes)
        self._given = []
        self._left_out.clear()
        self._turns = []
        self.passed_over.clear()  # they are gone with this commit
        self._keyless_taken = 0
        self.uncommitted = self.uncommitted_bytes = 0
        return PreparedCommit(
            StateCommit(changes, positions, dict(self._sequences), messages),
            records,
            engine.watermarks(),
            engine.counts(),
            engine.gave(),
        )

    def _messages(self, now_ms: int) -> list[Message]:
        given = self._given
        if self._left_out:
            given = [one.without(self._left_out) for one in given]
        before = dict(self._sequences)
        try:
            messages = self._outgoing.messages(given, now_ms)
            return messages + self._relaying.messages(given, self._marks(), now_ms)
        except BaseException as exc:
            unfit = self._outgoing.unfit(given, now_ms) + self._relaying.unfit(given)
            self._sequences.clear()
            self._sequences.update(before)
            if unfit:
                raise UnfitResults(unfit) from exc
            raise

    def leave_out(self, unfit: UnfitResults) -> None:
        """Do without these results: they are dead letters. Before anything else, the commit is prepared again."""
        self._left_out.update(record.id for _, record, _ in unfit.unfit)

    def write(self, commit: PreparedCommit) -> list[tuple[int, Message]]:
        """Write down what was prepared; what is returned is to be published, and said to be by `state.sent()`.

        Meanwhile the next turns may be taken, in another thread; not the next commit, nor `again()`.

        Raises:
            LeaseLost: the partition has another owner; nothing was committed.
            RowsRefused: nothing was committed. The same may be tried again, after `rows.leave_out()`.
            StateUnavailable, RowsFailed: nothing was committed. This run is spent.
        """
        numbered = self.rows.commit(commit.writes)
        self._store.settled()
        self._committed = {source: one.offset for source, one in commit.writes.positions.items()}
        return numbered

    def commit(
        self, positions: Mapping[str, LogPosition], now_ms: int
    ) -> list[tuple[int, Message]]:
        """`prepare()` and `write()`, one after the other."""
        return self.write(self.prepare(positions, now_ms))

    def close(self) -> None:
        self.state.close()
