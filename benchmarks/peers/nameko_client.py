"""Stock Nameko clients: `ClusterRpcProxy` with `call_async`, and `event_dispatcher`.

Each publish blocks until its confirm, so one thread with one proxy waits much of its time. What
serves Nameko best is a few threads with a proxy and a sliding window of `call_async` each.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from nameko.standalone.events import event_dispatcher, get_event_exchange
from nameko.standalone.rpc import ClusterRpcProxy

from benchmarks.peers import event_load, rpc_load
from benchmarks.peers.protocol import ANSWER_WITHIN, ECHOED, Event, amqp_uri
from benchmarks.peers.rpc_load import Levels

SERVICE = "bench_nameko"
FEED = "bench_nameko_feed"
THREADS = 8
"""Below the 10 connections kombu's pools allow; more threads only contend for the interpreter."""


class _Proxy:
    """A started proxy, as the load wants it."""

    def __init__(self, cluster: Any) -> None:
        self._echo = getattr(cluster, SERVICE).echo

    def submit(self) -> Any:
        return self._echo.call_async(ECHOED)

    def collect(self, handle: Any) -> Any:
        return handle.result()


def rpc_client() -> None:
    """Call the service's echo."""
    config = {"AMQP_URI": amqp_uri()}
    with contextlib.ExitStack() as stack:
        proxies = [
            _Proxy(stack.enter_context(ClusterRpcProxy(config, timeout=ANSWER_WITHIN)))
            for _ in range(THREADS)
        ]
        rpc_load.drive_in_threads(proxies, Levels.from_arguments(sys.argv[2:]))


def event_publisher() -> None:
    """Dispatch events, each confirmed before its thread sends the next."""
    config: dict[str, Any] = {"AMQP_URI": amqp_uri()}
    dispatch = event_dispatcher(config, declare=[get_event_exchange(FEED, config)])

    def publish(event: Event) -> None:
        dispatch(FEED, "departed", event)

    event_load.publish_bursts_in_threads(publish, THREADS)


if __name__ == "__main__":
    {"rpc-client": rpc_client, "event-publisher": event_publisher}[sys.argv[1]]()
