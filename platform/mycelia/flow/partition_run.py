"""One partition of a flow, run by its owner: an engine over a state file, and what has been given since the last commit.

No clock and no broker: entries go in, messages come out of a commit. Calls block, for the file's sake and the functions'; they are made in a
thread, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mycelia.amqp import Message
from mycelia.errors import FlowError, FlowFunctionError
from mycelia.flow.engine import Engine, Given
from mycelia.flow.graph import FlowPlan
from mycelia.flow.outgoing import Outgoing
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.state_file import StateFile
from mycelia.logs import LogEntry, LogPosition, Record
from mycelia.wire import Serializer

__all__ = ["FlowDescription", "PartitionRun", "RecordFailed"]


class FlowDescription:
    """What is run of each partition: made once, when the service starts.

    Attributes:
        group: the flow's name, part of all ids.
        source: the name of the log that it reads.
        exchange: that of the service's events.
    """

    __slots__ = ("exchange", "group", "outputs", "plan", "serializer", "source")

    def __init__(
        self,
        group: str,
        source: str,
        plan: FlowPlan,
        outputs: Sequence[FlowOutput],
        exchange: str,
        serializer: Serializer,
    ) -> None:
        self.group = group
        self.source = source
        self.plan = plan
        self.outputs = outputs
        self.exchange = exchange
        self.serializer = serializer


class RecordFailed(FlowError):
    """A function of the flow raised over one record, which is known; the cause is `__cause__`."""

    def __init__(self, entry: LogEntry[Any], index: int, record: Record[Any], text: str) -> None:
        super().__init__(text)
        self.entry = entry
        self.index = index
        self.record = record


class PartitionRun:
    """Opens a partition's state, becomes its owner, and goes on from there.

    Args:
        epoch: the lease's.

    Raises:
        StateUnavailable, StateIncompatible: the state cannot be used.
    """

    def __init__(
        self, description: FlowDescription, partition: int, path: Path, epoch: int
    ) -> None:
        self.partition = partition
        self._source = description.source
        what = f'flow "{description.group}", partition {partition}'
        self.file = StateFile(path, what)
        try:
            self.left_over = self.file.claim(epoch)
            """What may not have been published when the last owner went."""
            checkpoint = self.file.checkpoint
            name = f"{description.group}/{checkpoint.generation}/{partition}"
            self._outgoing = Outgoing(
                description.outputs,
                name,
                partition,
                dict(checkpoint.sequences),
                description.exchange,
                description.serializer,
            )
            self._engine = Engine(
                description.plan, {self._source: [partition]}, store=self.file, flow=name
            )
        except BaseException:
            self.file.close()
            raise
        self._given: list[Given] = []
        self.uncommitted = 0
        """Records taken since the last commit."""

    @property
    def position(self) -> LogPosition | None:
        """Where to go on, as of the last commit; `None`: nothing has been taken."""
        return self.file.checkpoint.position

    @property
    def has_given(self) -> bool:
        """Whether something waits for the next commit to leave."""
        return bool(self._given)

    def watermarks(self) -> dict[str, int]:
        return self._engine.watermarks()

    def feed(
        self, entries: Sequence[LogEntry[Any]], skipped: set[tuple[int, int]], now_ms: int
    ) -> None:
        """Take entries, as one batch.

        Args:
            skipped: records that are left out, by offset and index.

        Raises:
            RecordFailed: a function raised over a record. This run is spent.
            FlowFunctionError: a function raised, and over which record cannot be said. This run is spent.
        """
        values: list[Any] = []
        keys: list[Any] = []
        times: list[Any] = []
        for entry in entries:
            records = _without(entry, skipped) if skipped else entry.records
            values += [record.value for record in records]
            keys += [record.key for record in records]
            times += [record.time for record in records]
        if None in times:  # a plain message whose writer told none
            times = [now_ms if time is None else time for time in times]
        self.uncommitted += len(values)
        try:
            self._given += self._engine.feed(
                self._source, self.partition, values, times, keys, now_ms=now_ms
            )
        except FlowFunctionError as exc:
            blamed = None if exc.position is None else _place(entries, skipped, exc.position)
            if blamed is None:
                raise
            entry, index, record = blamed
            text = f"partition {self.partition}, offset {entry.offset}, record {index}: {exc}"
            raise RecordFailed(entry, index, record, text) from exc

    def tick(self, now_ms: int) -> None:
        """Let time on the wall come by.

        Raises:
            FlowFunctionError: a function raised. This run is spent.
        """
        self._given += self._engine.tick(now_ms)

    def commit(self, position: LogPosition | None, now_ms: int) -> list[tuple[int, Message]]:
        """Write down all that was taken; what is returned is to be published, and said to be by `file.sent()`.

        Raises:
            LeaseLost: the partition has another owner; nothing was committed.
            StateUnavailable, StateIncompatible, UnserializableValueError, ContractError: nothing was committed. This run is spent.
        """
        messages = self._outgoing.messages(self._given, now_ms)
        numbered = self.file.commit(
            self._engine.take_changes(), position, self._outgoing.sequences, messages
        )
        self._given = []
        self.uncommitted = 0
        return numbered

    def close(self) -> None:
        self.file.close()


def _without(entry: LogEntry[Any], skipped: set[tuple[int, int]]) -> list[Record[Any]]:
    return [record for record, _ in _places(entry, skipped)]


def _places(
    entry: LogEntry[Any], skipped: set[tuple[int, int]]
) -> Iterable[tuple[Record[Any], int]]:
    for record, index in zip(entry.records, entry.indexes, strict=True):
        if (entry.offset, index) not in skipped:
            yield record, index


def _place(
    entries: Iterable[LogEntry[Any]], skipped: set[tuple[int, int]], position: int
) -> tuple[LogEntry[Any], int, Record[Any]] | None:
    """Which record the one at `position` of the batch is."""
    at = 0
    for entry in entries:
        for record, index in _places(entry, skipped):
            if at == position:
                return entry, index, record
            at += 1
    return None
