"""A flow of several stages in one process, over logs and states in memory: interleaved by a seed, crashing where it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from mycelia import Log
from mycelia.amqp import Delivery, Message
from mycelia.flow import FlowOutput, MemoryStore
from mycelia.flow.delivery import SINK_EXCHANGE
from mycelia.flow.partition_run import PartitionRun, RecordsFailed, StageDescription
from mycelia.flow.relay_log import TELL_EVERY_MS
from mycelia.flow.sinks.sink import SinkPlace
from mycelia.flow.staging import descriptions_of
from mycelia.flow.state_file import FlowCheckpoint, StateCommit
from mycelia.logs import LogEntry, LogPosition
from mycelia.logs.batch_format import decode_entry, encode_columns, entry_properties, producer_of
from mycelia.logs.partitioning import partition_of
from mycelia.logs.sequences import SeenSequences
from mycelia.wire import SerializerRegistry

__all__ = ["StagedRun", "stages"]


def stages(
    outputs: Sequence[FlowOutput], logs: Sequence[Log[Any]], group: str = "g"
) -> list[StageDescription]:
    """The stages of a flow over these logs."""
    serializer = SerializerRegistry().by_name(None)
    return descriptions_of(group, outputs, {one.name: one for one in logs}, "events", serializer)


class _Dies(Exception):
    pass


class _State(MemoryStore):
    """A partition's state, in memory; what `StateFile` is on a disk."""

    where = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.checkpoint = FlowCheckpoint(generation="1")
        self._outbox: dict[int, Message] = {}
        self._next = 1
        self._sent = 0

    def claim(self, epoch: int) -> list[tuple[int, Message]]:
        self.epoch += 1
        self._sent = 0
        return list(self._outbox.items())

    def commit(self, commit: StateCommit) -> list[tuple[int, Message]]:
        self.write(commit.changes)
        self.checkpoint = commit.checkpoint(self.checkpoint.generation)
        for number in [one for one in self._outbox if one <= self._sent]:
            del self._outbox[number]
        numbered = list(enumerate(commit.messages, self._next))
        self._next += len(numbered)
        self._outbox.update(numbered)
        return numbered

    def sent(self, number: int) -> None:
        self._sent = number

    def forget_sent(self) -> None: ...

    def call_off(self) -> None: ...

    def close(self) -> None: ...


class StagedRun:
    """Runs stages over what is appended.

    Args:
        crash_rate: how likely a partition dies at each of the points where it may.
        buries: whether records that fail are left out; they are in `dead`, each perhaps more than once.
    """

    def __init__(
        self,
        described: Sequence[StageDescription],
        *,
        seed: int = 0,
        crash_rate: float = 0.0,
        buries: bool = False,
    ) -> None:
        self.described = list(described)
        self.logs: dict[str, list[list[Message]]] = {}
        self.now_ms = 1_000_000
        self.crashes = 0
        self.dead: list[str] = []
        self._chance = Random(seed)
        self._crash_rate = crash_rate
        self._buries = buries
        self._numbers: dict[tuple[str, int], int] = {}
        self._states: dict[tuple[int, int], _State] = {}
        self._runs: dict[tuple[int, int], PartitionRun] = {}
        self._read: dict[tuple[int, int], dict[str, tuple[int, SeenSequences]]] = {}
        self._sinks = {
            output.name: output.sink
            for stage in described
            for output in stage.outputs
            if output.sink is not None
        }
        for stage in described:
            for source in stage.reads.values():
                self.logs.setdefault(source.name, [[] for _ in range(source.partitions)])
            for output in stage.outputs:
                if output.log is not None:
                    self.logs.setdefault(
                        output.log.name, [[] for _ in range(output.log.partitions)]
                    )

    def append(self, log: Log[Any], values: Sequence[Any], batch: int = 10) -> None:
        """Put records into their partitions, `batch` to an entry."""
        split: dict[int, list[Any]] = {}
        for value in values:
            key = log.shape.key_of(value)
            assert key is not None
            split.setdefault(partition_of(key, log.partitions), []).append(value)
        for partition, its in split.items():
            for begin in range(0, len(its), batch):
                some = its[begin : begin + batch]
                keys, nothing = log.shape.keys_of(some), [None] * len(some)
                body = encode_columns(keys, nothing, None, [log.shape.codec.encode(some)])
                number = self._numbers.get((log.name, partition), 0)
                self._numbers[log.name, partition] = number + 1
                properties = entry_properties(len(some), "writer", number)
                self.logs[log.name][partition].append(Message(log.name, "", body, properties))

    def run(self, quiet_ms: int = 2 * TELL_EVERY_MS) -> None:
        """Until nothing is left to read, and `quiet_ms` of time on the wall have come by without anything new."""
        places = [
            (number, partition)
            for number, stage in enumerate(self.described)
            for partition in range(stage.partitions)
        ]
        silent_since = self.now_ms
        while self.now_ms - silent_since < quiet_ms:
            waiting = [one for one in places if self._waiting(one)]
            if waiting:
                self._survive(self._chance.choice(waiting), self._step)
                silent_since = self.now_ms
                continue
            self.now_ms += 50
            for place in places:
                while not self._survive(place, self._tick):
                    pass
        for place in places:
            while not self._survive(place, self._commit):
                pass

    def values(self, log: Log[Any]) -> list[Any]:
        """What is in a log, as a reader gets it: what was published again is dropped."""
        found: list[Any] = []
        for partition in self.logs[log.name]:
            seen = SeenSequences()
            for message in partition:
                told = producer_of(message.properties.headers)
                assert told is not None
                if seen.is_new(*told):
                    found += decode_entry(message.properties, message.body, log.shape.codec).values
        return found

    # --- a partition -----------------------------------------------------------------------------

    def _survive(self, place: tuple[int, int], step: Callable[[tuple[int, int]], None]) -> bool:
        try:
            step(place)
        except _Dies:
            self.crashes += 1
            del self._runs[place]
            return False
        return True

    def _may_die(self) -> None:
        if self._chance.random() < self._crash_rate:
            raise _Dies

    def _run_of(self, place: tuple[int, int]) -> PartitionRun:
        run = self._runs.get(place)
        if run is None:
            number, partition = place
            state = self._states.setdefault(place, _State())
            run = self._runs[place] = PartitionRun(
                self.described[number], partition, state, 1, collects=self._buries
            )
            self._read[place] = {
                name: (one.offset, SeenSequences.from_plain(one.seen))
                for name, one in run.positions.items()
            }
            self._publish(run, run.left_over)
        return run

    def _waiting(self, place: tuple[int, int]) -> list[str]:
        """The sources of which something is left to read."""
        number, partition = place
        read = self._read.get(place, {})
        return [
            name
            for name, source in self.described[number].reads.items()
            if partition < source.partitions
            and read.get(name, (0, None))[0] < len(self.logs[source.name][partition])
        ]

    def _step(self, place: tuple[int, int]) -> None:
        run = self._run_of(place)
        number, partition = place
        waiting = self._waiting(place)
        taken: dict[str, list[LogEntry[Any]]] = {}
        for name in (
            self._chance.sample(waiting, self._chance.randint(1, len(waiting))) if waiting else ()
        ):
            source = self.described[number].reads[name]
            offset, seen = self._read[place].get(name, (0, SeenSequences()))
            messages = self.logs[source.name][partition][
                offset : offset + self._chance.randint(1, 3)
            ]
            entries = [
                _entry(source, partition, offset + at, message)
                for at, message in enumerate(messages)
                if (told := producer_of(message.properties.headers)) and seen.is_new(*told)
            ]
            self._read[place][name] = offset + len(messages), seen
            if entries:
                taken[name] = entries
        self._feed(run, taken)
        self._may_die()
        if self._chance.random() < 0.3:
            self._commit(place)

    def _feed(self, run: PartitionRun, taken: dict[str, list[LogEntry[Any]]]) -> None:
        try:
            run.feed(taken, self.now_ms)
        except RecordsFailed as exc:
            failed = exc
            while self._buries:
                for one in failed.failed:
                    run.skipped.add(one.place)
                    self.dead.append(str(one))
                try:
                    run.again()
                except RecordsFailed as more:
                    failed = more
                else:
                    return
            raise

    def _tick(self, place: tuple[int, int]) -> None:
        run = self._run_of(place)
        run.tick(self.now_ms)
        if run.has_news(self.now_ms):
            self._commit(place)

    def _commit(self, place: tuple[int, int]) -> None:
        run = self._run_of(place)
        positions = {
            name: LogPosition(offset=offset, seen=seen.to_plain())
            for name, (offset, seen) in self._read[place].items()
        }
        self._may_die()
        numbered = run.commit(positions, self.now_ms)
        self._may_die()
        self._publish(run, numbered)

    def _publish(self, run: PartitionRun, numbered: list[tuple[int, Message]]) -> None:
        for _, message in numbered:
            self._may_die()
            if message.exchange in self.logs:
                self.logs[message.exchange][int(message.routing_key)].append(message)
            elif message.exchange == SINK_EXCHANGE:
                sink = self._sinks[message.routing_key]
                place = SinkPlace(run.flow, message.routing_key, 0)
                asyncio.run(sink.deliver(message.body, place, set()))
        if numbered:
            run.state.sent(numbered[-1][0])


def _entry(source: Any, partition: int, offset: int, message: Message) -> LogEntry[Any]:
    decoded = decode_entry(message.properties, message.body, source.shape.codec)
    assert not decoded.faults
    nobody: Any = None
    delivery = Delivery(nobody, "", 0, False, "", "", message.properties, message.body)
    return LogEntry(
        decoded.keys,
        decoded.times,
        decoded.headers,
        decoded.values,
        decoded.indexes,
        partition=partition,
        offset=offset,
        delivery=delivery,
    )
