"""What steps of a flow know of a key, to be asked for: windows that are open, the state that a function keeps. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.equal_keys import key_state
from mycelia.flow.operators import Operator
from mycelia.flow.results import OpenWindow
from mycelia.flow.state import StoreReader
from mycelia.flow.state_codec import decode_state
from mycelia.flow.tables import row_of

__all__ = [
    "MOST_WINDOWS",
    "STATE_KIND",
    "AskedStep",
    "KeyAnswer",
    "KnownOfKey",
    "ReadsKey",
    "ReadsWindows",
    "reads_row",
    "reads_state",
    "reads_windows",
    "state_output",
]

STATE_KIND: Final = "state"
"""Of the node that `as_state()` puts behind a step."""

MOST_WINDOWS: Final = 100
"""In one answer: a key of `hopping("1d", every="1s")` has 86,400 open ones. Arbitrary."""

ReadsWindows = Callable[[Any, int], tuple[list[OpenWindow], int]]
"""Of what is kept of a key, and a number: so many windows at most, the latest last, and how many earlier ones are left out."""


def state_output(name: str) -> str:
    """The name of the output that `as_state()` gives, and of its node."""
    return f"{STATE_KIND}-{name}"


class KeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a flow says of a key, as of the last commit of the key's partition."""

    key: Any
    value: Any = UNSET
    """Of a table: the record that is the newest in event time."""
    time_ms: int | UnsetType = UNSET
    """Of a table: the record's event time, milliseconds since 1970."""
    windows: list[OpenWindow] | UnsetType = UNSET
    """Of windows: those that are open, the latest last."""
    left_out: int | UnsetType = UNSET
    """Of windows: how many more are open, all of them earlier."""
    state: Any = UNSET
    """Of `process()`: the function's."""
    partition: int
    watermark_ms: int | None
    """How far event time had come there."""
    committed_ms: int | None
    """When the commit was; `None` where whoever answers has not committed yet."""

    @property
    def newness(self) -> int:
        """Of several partitions that know a key, the one where it is greatest is told."""
        return self.watermark_ms or 0 if isinstance(self.time_ms, UnsetType) else self.time_ms


KnownOfKey = dict[str, Any]
"""Fields of a `KeyAnswer`."""

ReadsKey = Callable[[StoreReader, str, Any], KnownOfKey | None]
"""Of a store, the name of a step, and a key: what is known of it; None if nothing is."""


def reads_row(store: StoreReader, step: str, key: Any) -> KnownOfKey | None:
    """The row of a table, as `ReadsKey`."""
    row = row_of(store, step, key)
    return None if row is None else {"time_ms": row[0], "value": row[1]}


def reads_state(store: StoreReader, step: str, key: Any) -> KnownOfKey | None:
    """The state that a function keeps, as `ReadsKey`."""
    (data,) = store.read(step, [key_state(key)])
    return None if data is None else {"state": decode_state(data)}


def reads_windows(read: ReadsWindows) -> ReadsKey:
    """Reads open windows; a key that has none is not known."""

    def reads(store: StoreReader, step: str, key: Any) -> KnownOfKey | None:
        (data,) = store.read(step, [key_state(key)])
        if data is None:
            return None
        windows, left_out = read(decode_state(data), MOST_WINDOWS)
        return {"windows": windows, "left_out": left_out} if windows else None

    return reads


class AskedStep(Operator):
    """Stands in the plan for those who ask the step before it, and takes what that gives."""

    def process(self, port: int, batch: ColumnBatch) -> None:
        pass
