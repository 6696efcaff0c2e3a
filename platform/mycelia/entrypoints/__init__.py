"""What makes workers run: RPC requests, events, messages, time, HTTP."""

from mycelia.entrypoints.batches import Batch
from mycelia.entrypoints.dead_letters import DeadLetters, dead_letter_queue_name
from mycelia.entrypoints.events import (
    BROADCAST,
    SERVICE_POOL,
    SINGLETON,
    EventHandler,
    event_handler,
)
from mycelia.entrypoints.http.call import HttpCall
from mycelia.entrypoints.http.entrypoint import Http, http
from mycelia.entrypoints.http.mount import HttpMount, mount
from mycelia.entrypoints.http.server_sent_events import ServerSentEvent, ServerSentEvents
from mycelia.entrypoints.messaging import Consumer, consume
from mycelia.entrypoints.rpc import Rpc, rpc
from mycelia.entrypoints.subscription import Subscription
from mycelia.entrypoints.timer import Tick, Timer, TimerCall, timer

__all__ = [
    "BROADCAST",
    "SERVICE_POOL",
    "SINGLETON",
    "Batch",
    "Consumer",
    "DeadLetters",
    "EventHandler",
    "Http",
    "HttpCall",
    "HttpMount",
    "Rpc",
    "ServerSentEvent",
    "ServerSentEvents",
    "Subscription",
    "Tick",
    "Timer",
    "TimerCall",
    "consume",
    "dead_letter_queue_name",
    "event_handler",
    "http",
    "mount",
    "rpc",
    "timer",
]
