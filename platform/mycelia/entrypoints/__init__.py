"""What makes workers run: RPC requests, events, messages, time, HTTP."""

import mycelia.entrypoints.nameko_web  # noqa: F401  it registers itself for `nameko.web`
from mycelia.entrypoints.dead_letters import DeadLetters, dead_letter_queue_name
from mycelia.entrypoints.event_stream import ServerSentEvent, ServerSentEvents
from mycelia.entrypoints.events import (
    BROADCAST,
    SERVICE_POOL,
    SINGLETON,
    EventHandler,
    event_exchange,
    event_handler,
)
from mycelia.entrypoints.http import Http, http
from mycelia.entrypoints.messaging import Consumer, consume, exchange_from, queue_topology
from mycelia.entrypoints.rpc import Rpc, rpc
from mycelia.entrypoints.subscription import Subscription
from mycelia.entrypoints.timer import Timer, timer

__all__ = [
    "BROADCAST",
    "SERVICE_POOL",
    "SINGLETON",
    "Consumer",
    "DeadLetters",
    "EventHandler",
    "Http",
    "Rpc",
    "ServerSentEvent",
    "ServerSentEvents",
    "Subscription",
    "Timer",
    "consume",
    "dead_letter_queue_name",
    "event_exchange",
    "event_handler",
    "exchange_from",
    "http",
    "queue_topology",
    "rpc",
    "timer",
]
