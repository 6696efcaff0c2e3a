"""Rows of tables that are in the same PostgreSQL as the flow's state: written in the transaction of the checkpoint, not delivered after it.

Who reads that database sees rows and checkpoint move together. "The same" is said by URLs (`StateDatabase.is_at()`). A file of SQLite is never the same:
each partition's state is a file of its own, and with journals that are written ahead SQLite commits in two files one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mycelia.amqp import Message
from mycelia.flow.delivery import SINK_EXCHANGE, number_of
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.partition_state import PartitionState
from mycelia.flow.sinks.sink import SinkPlace, SinkRecord, SinkRefused, unpack_records
from mycelia.flow.sinks.sql_table import SqlTable, is_refusal
from mycelia.flow.state_database import DatabaseState, RowsFailed
from mycelia.logs.position import LogPosition

__all__ = ["RowRefused", "RowsBeside"]


class RowRefused(SinkRefused):
    """A table beside the state will not have a row, so that there was no commit.

    Attributes:
        output: whose record it is.
        record: the one.
    """

    def __init__(self, refused: SinkRefused, output: str, record: SinkRecord[Any]) -> None:
        super().__init__(f'output "{output}": {refused}', refused.record_id)
        self.output = output
        self.record = record


class RowsBeside:
    """Commits of one partition, with the rows that go with them.

    Args:
        flow: the place's: see `SinkPlace`.
    """

    def __init__(self, state: PartitionState, outputs: Iterable[FlowOutput], flow: str) -> None:
        self._state = state
        self._flow = flow
        self._tables: dict[str, SqlTable[Any]] = {}
        if isinstance(state, DatabaseState):
            for output in outputs:
                sink = output.sink
                if isinstance(sink, SqlTable):
                    url = sink.libpq_url()
                    if url is not None and state.is_in(url):
                        self._tables[output.name] = sink
        self._left_out: set[tuple[str, str]] = set()
        self.written = 0
        """Bodies."""

    @property
    def outputs(self) -> list[str]:
        """Whose rows go with commits. Of what lies in the outbox for them, the rows have to be there before a commit."""
        return list(self._tables)

    def leave_out(self, refused: RowRefused) -> None:
        """Do without this record: it is a dead letter. Until the next commit, which is the only one that has it."""
        self._left_out.add((refused.output, refused.record.id))

    def commit(
        self,
        changes: Mapping[str, Mapping[bytes, bytes | None]],
        positions: Mapping[str, LogPosition],
        sequences: Mapping[str, int],
        messages: Sequence[Message],
    ) -> list[tuple[int, Message]]:
        """As `PartitionState.commit()`, without those messages that are rows of ours, which are written.

        Raises:
            RowRefused: a table will not have one; nothing was committed. It may be tried again, with the same and without that record.
            RowsFailed: rows could not be written for another reason; nothing was committed.
        """
        state, tables = self._state, self._tables
        ours = [
            one for one in messages if one.exchange == SINK_EXCHANGE and one.routing_key in tables
        ]
        if not ours:
            return state.commit(changes, positions, sequences, messages)
        assert isinstance(state, DatabaseState)
        for output in {one.routing_key for one in ours}:
            tables[output].prepare()

        def write(db: Any) -> None:
            for one in ours:
                place = SinkPlace(self._flow, one.routing_key, number_of(one))
                tables[one.routing_key].write_beside(db, self._records(one), place)

        rest = [
            one
            for one in messages
            if one.exchange != SINK_EXCHANGE or one.routing_key not in tables
        ]
        try:
            numbered = state.commit(changes, positions, sequences, rest, write)
        except RowsFailed as exc:
            if is_refusal(exc.__cause__) and (found := self._refused(ours)) is not None:
                raise found from exc.__cause__
            raise
        self.written += len(ours)
        self._left_out.clear()
        return numbered

    def _records(self, message: Message) -> list[SinkRecord[Any]]:
        output = message.routing_key
        return [
            one for one in unpack_records(message.body) if (output, one.id) not in self._left_out
        ]

    def _refused(self, bodies: Iterable[Message]) -> RowRefused | None:
        """The first record of these that its table will not have."""
        for body in bodies:
            records = self._records(body)
            refused = self._tables[body.routing_key].refused(records)
            if refused is not None:
                (record,) = [one for one in records if one.id == refused.record_id]
                return RowRefused(refused, body.routing_key, record)
        return None
