"""Services written for Nameko: nothing here knows of Mycelia, or of traces."""

from __future__ import annotations

from typing import Any

from nameko.events import EventDispatcher, event_handler
from nameko.rpc import RpcProxy, rpc


class Old:
    name = "old"
    dispatch = EventDispatcher()
    older = RpcProxy("older")

    @rpc
    def begin(self) -> Any:
        self.dispatch("begun", {"n": 1})
        return self.older.answer()


class Older:
    name = "older"

    @rpc
    def answer(self) -> int:
        return 42

    @event_handler("old", "begun")
    def on_begun(self, payload: Any) -> None:
        """The end of the trace."""
