"""Nameko's websocket hub, made fit for workers that are threads: many may subscribe and broadcast at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mycelia.nameko.bridged_dependency import BridgedDependency

__all__ = ["Channels", "HubProvider"]


class _Members(set[str]):
    """Sockets on a channel; may change while a broadcast goes through them."""

    def __iter__(self) -> Iterator[str]:
        return iter(frozenset(self))


class Channels(dict[str, Any]):
    """A hub's channels, each with its own `_Members`."""

    def setdefault(self, channel: str, default: Any = ()) -> Any:
        return super().setdefault(channel, _Members(default))


class HubProvider(BridgedDependency):
    """Runs Nameko's `WebSocketHubProvider`, or a subclass, with a hub that many threads may use at once."""

    async def setup(self) -> None:
        await super().setup()
        hub: Any = getattr(self.foreign, "hub", None)
        if hasattr(hub, "subscriptions"):
            hub.subscriptions = Channels(hub.subscriptions)
