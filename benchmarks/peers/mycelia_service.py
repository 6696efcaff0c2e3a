"""Mycelia services, as a user writes them and `nameko run` starts them."""

from __future__ import annotations

from benchmarks.peers.protocol import Event
from benchmarks.peers.tally import Tally
from mycelia import event_handler, rpc

tally = Tally()


class BenchAsync:
    """Handlers on the event loop."""

    name = "bench_async"

    @rpc
    async def echo(self, x: int) -> int:
        """Give back what came."""
        return x

    @event_handler("bench_async_feed", "departed")
    async def departed(self, event: Event) -> None:
        """Count an event."""
        tally.add(event)


class BenchDef:
    """Handlers in worker threads."""

    name = "bench_def"

    @rpc
    def echo(self, x: int) -> int:
        """Give back what came."""
        return x

    @event_handler("bench_def_feed", "departed")
    def departed(self, event: Event) -> None:
        """Count an event."""
        tally.add(event)
