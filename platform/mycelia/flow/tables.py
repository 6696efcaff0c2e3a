"""Tables of a flow: of each key of a stream what it said last, kept with the state, to be asked for. Pure."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.equal_keys import key_state
from mycelia.flow.operators import Operator
from mycelia.flow.results import WindowResult
from mycelia.flow.state import Changes, KeyedState, StoreReader
from mycelia.flow.state_codec import decode_state

__all__ = [
    "Tabling",
    "is_retraction",
    "key_from_wire",
    "row_of",
    "rows_of",
    "table_step",
    "takes_back",
]

KIND: Final = "table"
"""Of the node: tables of a plan are found by it."""


def table_step(table: str) -> str:
    """The name of a table's step, and of its output."""
    return f"{KIND}-{table}"


class Tabling(Operator):
    """Keeps the record of each key that is the newest in event time; of equal ones, that which came last.

    A retraction takes back the result that is there, if it is of the same window.
    """

    def __init__(self, name: str, store: StoreReader | None) -> None:
        super().__init__(name)
        self._state: KeyedState[tuple[int, Any]] = KeyedState(name, store, list, tuple)
        self._older = 0

    def process(self, port: int, batch: ColumnBatch) -> None:
        keys = batch.keys
        assert keys is not None
        live = self._state.load(dict.fromkeys(keys))
        touched: set[Any] = set()
        for key, time, value in zip(keys, batch.times, batch.values, strict=True):
            held = live.get(key)
            if is_retraction(value):
                if held is not None and takes_back(value, held[1]):
                    del live[key]
                    touched.add(key)
            elif held is None or time >= held[0]:
                live[key] = (time, value)
                touched.add(key)
            else:
                self._older += 1
        self._state.touch(touched)

    def take_changes(self, changes: Changes) -> None:
        changes.setdefault(self._state.space, {}).update(self._state.take_changes())

    def counts(self) -> dict[str, int]:
        return {"older": self._older}


def is_retraction(value: Any) -> TypeGuard[WindowResult[Any, Any]]:
    """Whether a record says of a window's result that it does not hold any more."""
    return isinstance(value, WindowResult) and value.is_retraction


def takes_back(retraction: WindowResult[Any, Any], held: Any) -> bool:
    """Whether it is of the same window as what is held."""
    return isinstance(held, WindowResult) and held.window == retraction.window


def row_of(store: StoreReader, table: str, key: Any) -> tuple[int, Any] | None:
    """The event time and the value that a store has of a key; `None`: it has none.

    Args:
        table: the name of its step.
    """
    (data,) = store.read(table, [key_state(key)])
    if data is None:
        return None
    time, value = decode_state(data)
    return time, value


def rows_of(store: StoreReader, table: str) -> list[tuple[Any, int, Any]]:
    """All that a store has of a table: keys, event times and values."""
    return [(decode_state(key), *decode_state(data)) for key, data in store.scan(table)]


def key_from_wire(key: Any) -> Any:
    """A key as state has it: what came as a list is a tuple there."""
    return tuple(map(key_from_wire, key)) if isinstance(key, list) else key
