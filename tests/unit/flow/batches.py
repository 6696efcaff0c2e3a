"""Short ways to feed operators and engines, and to read what they gave."""

from __future__ import annotations

from typing import Any

from mycelia.flow import Changes, MemoryStore
from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.operators import Operator
from mycelia.flow.results import WindowResult

Records = list[tuple[Any, int, Any]]
"""Key, event time and value of each."""


def columns(records: Records) -> ColumnBatch:
    keys, times, values = (list(column) for column in zip(*records, strict=True))
    return ColumnBatch(times, values, keys, 0, ())


def taken(one: Operator, port: int = 0) -> list[Any]:
    """The values that an operator has given by a port."""
    found = [value for to, batch in one.out if to == port for value in batch.values]
    one.out = [(to, batch) for to, batch in one.out if to != port]
    return found


def brief(results: list[WindowResult[Any, Any]]) -> list[tuple[Any, ...]]:
    return [(one.key, one.start_ms, one.end_ms, one.value, one.timing) for one in results]


def save(one: Operator, store: MemoryStore) -> None:
    changes: Changes = {}
    one.take_changes(changes)
    store.write(changes)
