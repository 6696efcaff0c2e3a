"""Nameko's `ReplyListener`, for proxies that packages and services make by hand: its calls end, whatever happens."""

from __future__ import annotations

from typing import Any

from mycelia.errors import RpcTimeout
from mycelia.nameko.bridge import BridgedExtension
from mycelia.wire import nameko_twin

__all__ = ["ReplyListenerCounterpart"]


class ReplyListenerCounterpart(BridgedExtension):
    """Runs a bound `ReplyListener`. A call without a reply raises `RpcTimeout`, in Nameko it waits for ever."""

    def bind(self, container: Any) -> Any:
        bound = super().bind(container)
        listener = bound.foreign = self.foreign
        made_by_stock = listener.get_reply_event

        def get_reply_event(correlation_id: str) -> Any:
            event = made_by_stock(correlation_id)
            loop = bound.container.loop
            loop.call_soon_threadsafe(bound.limit, correlation_id)
            return event

        listener.get_reply_event = get_reply_event
        return bound

    def limit(self, correlation_id: str) -> None:
        """Give the call its time, as the setting `mycelia.rpc_timeout` has it."""
        timeout = self.container.settings.mycelia.rpc_timeout
        self.container.loop.call_later(timeout, self._give_up, correlation_id, timeout)

    def _give_up(self, correlation_id: str, timeout: float) -> None:
        event = self.foreign._reply_events.pop(correlation_id, None)
        if event is not None:
            event.send_exception(nameko_twin(RpcTimeout)("a call of a stock proxy", timeout))
