"""Events: confirmed, persistent, handled and acked, from the first publish to the last handled.

    python -m benchmarks.events --rounds 5 --seconds 2

One process publishes for `--seconds`, with at most 256 unconfirmed; another handles as they come.
The rate counts all of them over the time until the last was handled, so a peer that publishes
faster than it handles gains nothing by it.
"""

from __future__ import annotations

from benchmarks.broker import Broker
from benchmarks.process import PeerProcess, cpu_seconds
from benchmarks.registry import Peer, Site
from benchmarks.rounds import Measured, Question
from benchmarks.serving import START_WITHIN, wait_until_ready

CASE = "events"
_SLACK = 60.0
"""Seconds beyond the publishing after which events that are still missing are taken for lost."""


def question(seconds: float, warm_up: float = 0.5) -> Question:
    """The question: a measured burst of `seconds`, after a warm-up."""

    def ask(peer: Peer, broker: Broker, site: Site) -> Measured:
        assert peer.events is not None
        handler_program, publisher_program = peer.events
        with handler_program.start(f"{peer.name} handler", site) as handler:
            wait_until_ready(handler, handler_program, broker)
            with publisher_program.start(f"{peer.name} publisher", site) as publisher:
                publisher.expect("ready", START_WITHIN)
                _until_bound(publisher, handler)
                _burst(f"seconds {warm_up}", publisher, handler)
                before = cpu_seconds(handler.pid)
                published, handled = _burst(f"seconds {seconds}", publisher, handler)
                after = cpu_seconds(handler.pid)
                publisher.finish()
        count = published["count"]
        metrics = {
            "rate_per_s": count / (handled["at"] - published["first_at"]),
            "publish_rate_per_s": count / (published["confirmed_at"] - published["first_at"]),
            "count": count,
        }
        if before is not None and after is not None:
            metrics["handler_cpu_us"] = (after - before) / count * 1e6
        return {CASE: metrics}

    return Question("events", (CASE,), lambda peer: peer.events is not None, ask)


def _until_bound(publisher: PeerProcess, handler: PeerProcess) -> None:
    """Publish single events until one is handled: then the handler's queue is bound.

    A handler may be ready to answer RPC before its event queue stands, and what is published
    before that reaches no queue.
    """
    tries = 20
    for _ in range(tries):
        publisher.tell("count 1")
        publisher.expect("published", START_WITHIN)
        if handler.poll("handled", START_WITHIN / tries) is not None:
            return
    raise handler.failure(f"handled none of {tries} events within {START_WITHIN:g} s")


def _burst(
    order: str, publisher: PeerProcess, handler: PeerProcess
) -> tuple[dict[str, float], dict[str, float]]:
    """One burst, published and handled whole: both reports."""
    publisher.tell(order)
    published = publisher.expect("published", float(order.split()[1]) + _SLACK)
    handled = handler.expect("handled", _SLACK)
    while handled["burst"] != published["burst"]:  # left over from finding out what is bound
        handled = handler.expect("handled", _SLACK)
    if handled["count"] != published["count"]:
        raise handler.failure(f"handled {handled['count']} of {published['count']} events")
    return published, handled


if __name__ == "__main__":
    from benchmarks.command import main

    main(events=question)
