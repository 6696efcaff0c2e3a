"""One partition of a flow, run by its owner: an engine over a state file, and what has been given since the last commit.

No clock and no broker: entries go in, messages come out of a commit. Calls block, for the file's sake and the functions'; they are made in a
thread, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mycelia.amqp import Message
from mycelia.errors import FlowError, FlowFunctionError, describe
from mycelia.flow.engine import Engine, Given
from mycelia.flow.graph import FlowPlan
from mycelia.flow.outgoing import Outgoing
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.state_file import StateFile
from mycelia.logs import LogEntry, LogPosition
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
    """A record that the flow cannot take; where a function raised over it, the cause is `__cause__`.

    Attributes:
        entry: the one that it is of.
        at: where in the entry's columns.
        index: its place in the entry as it was written.
    """

    def __init__(self, entry: LogEntry[Any], at: int, text: str) -> None:
        super().__init__(text)
        self.entry = entry
        self.at = at
        self.index = entry.indexes[at]


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
    ) -> list[RecordFailed]:
        """Take entries, as one batch. Returns the records that the flow goes on without: of no key, or of an impossible time.

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
            if skipped and any((entry.offset, index) in skipped for index in entry.indexes):
                kept = _places(entry, skipped)
                values += [entry.values[at] for at in kept]
                keys += [entry.keys[at] for at in kept]
                times += [entry.times[at] for at in kept]
            else:
                values += entry.values
                keys += entry.keys
                times += entry.times
        if None in times:  # a plain message whose writer told none
            times = [now_ms if time is None else time for time in times]
        self.uncommitted += len(values)
        try:
            self._given += self._engine.feed(
                self._source, self.partition, values, times, keys, now_ms=now_ms
            )
        except FlowFunctionError as exc:
            cause = exc if exc.__cause__ is None else exc.__cause__
            text = f'operator "{exc.operator}", key {exc.key!r:.80}: {describe(cause)}'
            failed = self._failed(entries, skipped, exc.position, text)
            if failed is None:
                raise
            raise failed from exc
        rejected = (
            self._failed(entries, skipped, one.position, f'operator "{one.operator}": {one.reason}')
            for one in self._engine.take_rejected()
        )
        return [one for one in rejected if one is not None]

    def _failed(
        self,
        entries: Sequence[LogEntry[Any]],
        skipped: set[tuple[int, int]],
        position: int | None,
        text: str,
    ) -> RecordFailed | None:
        """The record at `position` of the batch, with what is wrong with it; None where it is no single one."""
        if position is None:
            return None
        for entry in entries:
            kept = _places(entry, skipped)
            if position < len(kept):
                at = kept[position]
                where = (
                    f"partition {self.partition}, offset {entry.offset}, record {entry.indexes[at]}"
                )
                return RecordFailed(entry, at, f"{where}, {text}")
            position -= len(kept)
        return None

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


def _places(entry: LogEntry[Any], skipped: set[tuple[int, int]]) -> list[int]:
    """Where in an entry's columns the records are that are not left out."""
    return [at for at, index in enumerate(entry.indexes) if (entry.offset, index) not in skipped]
