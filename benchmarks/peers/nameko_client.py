"""Stock Nameko clients: `ClusterRpcProxy` with `call_async`, and `event_dispatcher`.

Calls go through one proxy as a sliding window of `call_async`, the oldest reply collected first:
it is Nameko's own way to have several in flight, and quicker than threads with a proxy each.
Events are dispatched from threads, since a dispatch blocks until its confirm.
"""

from __future__ import annotations

import sys
from typing import Any

from nameko.standalone.events import event_dispatcher, get_event_exchange
from nameko.standalone.rpc import ClusterRpcProxy

from benchmarks.peers import event_load, rpc_load
from benchmarks.peers.protocol import ANSWER_WITHIN, ECHOED, Event, amqp_uri
from benchmarks.peers.roles import levels

SERVICE = "bench_nameko"
FEED = "bench_nameko_feed"
DISPATCHING_THREADS = 8
"""Below the 10 connections kombu's pool allows; more threads only contend for the interpreter."""


def rpc_client() -> None:
    """Call the service's echo."""
    with ClusterRpcProxy({"AMQP_URI": amqp_uri()}, timeout=ANSWER_WITHIN) as cluster:
        echo = getattr(cluster, SERVICE).echo
        rpc_load.drive_window(
            lambda: echo.call_async(ECHOED), lambda reply: reply.result(), levels()
        )


def event_publisher() -> None:
    """Dispatch events, each confirmed before its thread sends the next."""
    config: dict[str, Any] = {"AMQP_URI": amqp_uri()}
    dispatch = event_dispatcher(config, declare=[get_event_exchange(FEED, config)])

    def publish(event: Event) -> None:
        dispatch(FEED, "departed", event)

    event_load.publish_bursts_in_threads(publish, DISPATCHING_THREADS)


if __name__ == "__main__":
    {"rpc-client": rpc_client, "event-publisher": event_publisher}[sys.argv[1]]()
