"""A stock Nameko service, with nothing of Mycelia in it; `nameko run` starts it."""

from __future__ import annotations

from nameko.events import event_handler
from nameko.rpc import rpc

from benchmarks.peers.protocol import Event
from benchmarks.peers.tally import Tally

tally = Tally()


class BenchNameko:
    """The same service as `mycelia_service` has."""

    name = "bench_nameko"

    @rpc
    def echo(self, x: int) -> int:
        """Give back what came."""
        return x

    @event_handler("bench_nameko_feed", "departed")
    def departed(self, event: Event) -> None:
        """Count an event."""
        tally.add(event)
