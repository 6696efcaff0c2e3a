"""Rows of tables that are in the same PostgreSQL as the flow's state: written in the transaction of the checkpoint, not delivered after it.

Who reads that database sees rows and checkpoint move together. "The same" is said by URLs (`StateDatabase.is_at()`). A file of SQLite is never the same:
each partition's state is a file of its own, and with journals that are written ahead SQLite commits in two files one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from mycelia.amqp import Message
from mycelia.errors import FlowError, StateUnavailable
from mycelia.flow.delivery import SINK_EXCHANGE, number_of
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.partition_state import PartitionState
from mycelia.flow.sinks.sink import SinkPlace, SinkRecord, SinkRefused, unpack_records
from mycelia.flow.sinks.sql_table import SqlTable, is_refusal, tried
from mycelia.flow.state_database import DatabaseState, RowsFailed
from mycelia.flow.state_file import StateCommit

__all__ = ["RowsBeside", "RowsRefused"]

_ATTEMPTS: Final = 5

_IN_EACH_OTHERS_WAY: Final = ("40P01", "40001")
"""SQLSTATE of a deadlock, and of transactions that cannot stand one behind the other: PostgreSQL has ended one of them, which may try again at once."""


class RowsRefused(FlowError):
    """Tables beside the state will not have rows, so that there was no commit.

    Attributes:
        rows: of each the output, the record, and why.
    """

    def __init__(self, rows: Sequence[tuple[str, SinkRecord[Any], SinkRefused]]) -> None:
        output, _, first = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        super().__init__(f'output "{output}": {first}{more}')
        self.rows = rows


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

    def leave_out(self, refused: RowsRefused) -> None:
        """Do without these records: they are dead letters. Until the next commit, which is the only one that has them."""
        self._left_out |= {(output, record.id) for output, record, _ in refused.rows}

    def commit(self, commit: StateCommit) -> list[tuple[int, Message]]:
        """As `PartitionState.commit()`, without those messages that are rows of ours, which are written.

        Raises:
            RowsRefused: a table will not have some; nothing was committed. It may be tried again, with the same and without those records.
            RowsFailed: rows could not be written for another reason; nothing was committed.
        """
        state, tables = self._state, self._tables
        ours: list[Message] = []
        rest: list[Message] = []
        for one in commit.messages:
            is_row = one.exchange == SINK_EXCHANGE and one.routing_key in tables
            (ours if is_row else rest).append(one)
        if not ours:
            return state.commit(commit)
        assert isinstance(state, DatabaseState)
        for output in {one.routing_key for one in ours}:
            tables[output].prepare()

        def write(db: Any) -> None:
            for one in ours:
                place = SinkPlace(self._flow, one.routing_key, number_of(one))
                tables[one.routing_key].write_beside(db, self._records(one), place)

        numbered = self._commit_with_rows(
            lambda: state.commit(commit._replace(messages=rest), write), ours
        )
        self.written += len(ours)
        self._left_out.clear()
        return numbered

    def _commit_with_rows(
        self, commit: Callable[[], list[tuple[int, Message]]], ours: Sequence[Message]
    ) -> list[tuple[int, Message]]:
        attempt = 1
        while True:
            try:
                return commit()
            except RowsFailed as exc:
                if is_refusal(exc.__cause__) and (found := self._refused(ours)):
                    raise RowsRefused(found) from exc.__cause__
                raise
            except StateUnavailable as exc:
                told = getattr(exc.__cause__, "sqlstate", None)
                if told not in _IN_EACH_OTHERS_WAY or attempt == _ATTEMPTS:
                    raise
                attempt += 1

    def _records(self, message: Message) -> list[SinkRecord[Any]]:
        output = message.routing_key
        return [
            one for one in unpack_records(message.body) if (output, one.id) not in self._left_out
        ]

    def _refused(self, bodies: Sequence[Message]) -> list[tuple[str, SinkRecord[Any], SinkRefused]]:
        """The records of these that their tables will not have."""
        outputs = [one.routing_key for one in bodies]
        found = tried([(self._tables[one.routing_key], self._records(one)) for one in bodies])
        return [(outputs[number], record, refused) for number, record, refused in found]
