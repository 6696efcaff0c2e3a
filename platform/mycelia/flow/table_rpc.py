"""`get_<table>(key)`: the method by which a service answers for a table of its flow. No class has it: the flow brings it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mycelia.call import get_current_call
from mycelia.entrypoints.rpc import Rpc
from mycelia.errors import UnknownTableKey
from mycelia.flow.tables import key_from_wire

__all__ = ["GetRow", "TableRpc", "table_method"]

WITHOUT_DEADLINE_S: Final = 10.0
"""Seconds for a question whose caller tells no deadline: stock Nameko's."""


GetRow = Callable[[str, Any, float], Awaitable[Any]]
"""Gives what a table says of a key, within seconds."""


def table_method(table: str) -> str:
    """The name of the method that answers for a table."""
    return f"get_{table}"


class TableRpc(Rpc):
    """The entrypoint of `get_<table>(key)`.

    Args:
        table: its name.
        get_row: the flow's.
    """

    def __init__(self, table: str, get_row: GetRow) -> None:
        super().__init__(idempotent=True, expected_exceptions=UnknownTableKey)
        self.table = table
        self._get_row = get_row

    @property
    def method(self) -> Callable[..., Awaitable[Any]]:
        table, get_row = self.table, self._get_row

        async def get(service: object, key: Any) -> Any:
            call = get_current_call()
            left = WITHOUT_DEADLINE_S
            if call is not None and call.deadline is not None:
                left = max(call.deadline - time.monotonic(), 0.001)
            # An answer a little before the deadline says more than none.
            return await get_row(table, key_from_wire(key), left * 0.9)

        return get
