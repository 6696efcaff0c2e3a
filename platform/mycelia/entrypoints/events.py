"""`@event_handler`: a method that handles events. Exchange, queue names and bindings are Nameko's.

Queues are quorum queues, unless the setting `mycelia.event_queue_type` says "classic" (exactly Nameko's declaration,
for a queue that stock Nameko instances consume too) or the queue exists already: then it is adopted as it is.
"""

from __future__ import annotations

import uuid
from typing import Unpack

from msgspec import UNSET, UnsetType

from mycelia.amqp import Binding, Exchange, Queue
from mycelia.call import CallKind
from mycelia.entrypoints.batches import Batch
from mycelia.entrypoints.dead_letters import dead_letter_queue_name
from mycelia.entrypoints.keys import MessageKey
from mycelia.entrypoints.subscription import Subscription
from mycelia.errors import ConfigError
from mycelia.policies.kill_switch import KillSwitch
from mycelia.policies.retry import Retry
from mycelia.runtime import EntrypointArguments, decorator_of
from mycelia.runtime.topology import event_exchange
from mycelia.wire import (
    BROADCAST,
    SERVICE_POOL,
    SINGLETON,
    handler_queue_name,
)

__all__ = [
    "BROADCAST",
    "SERVICE_POOL",
    "SINGLETON",
    "EventHandler",
    "event_handler",
]

HANDLER_TYPES = (SERVICE_POOL, SINGLETON, BROADCAST)


class EventHandler(Subscription):
    """The entrypoint behind `@event_handler`.

    Args:
        source_service: whose events.
        event_type: which; `*` and `#` match as in a topic binding.
        handler_type: SERVICE_POOL, one instance of each service handles an event; SINGLETON, one instance of
            one service; BROADCAST, every instance.
        reliable_delivery: events wait in the queue while no instance runs. `None` means yes, and no for
            BROADCAST, whose queue belongs to one instance.
        requeue_on_error: Nameko's word for a policy; see `Subscription`.
        retry: when a message whose method raises is tried again: `Retry(…)`, or `None` for never. By default after 1 s, 5 s,
            30 s, 5 min and 30 min, unless the configuration says otherwise.
        queue_type: "quorum" or "classic"; the setting `mycelia.event_queue_type` by default.
        kill_switch: stop taking events when the method fails too often (`KillSwitch`); as the setting `mycelia.kill_switch` says
            by default, which is never.
        key: a field of the payload, or a function of it: what has the same key is handled in the order of the queue, one after
            the other, and what fails is tried again in its place.
        parks: once a message of a key is dead-lettered, all that follow it are as well, until they are redriven.
        batch: `Batch(size=500, within=0.2)`: the method is given lists of payloads. It returns `None`, or for each of them what came of it.
    """

    kind = CallKind.EVENT

    def __init__(
        self,
        source_service: str,
        event_type: str,
        handler_type: str = SERVICE_POOL,
        reliable_delivery: bool | None = None,
        requeue_on_error: bool = False,
        *,
        retry: Retry | UnsetType | None = UNSET,
        queue_type: str | None = None,
        kill_switch: KillSwitch | bool | None = None,
        key: MessageKey | None = None,
        parks: bool = False,
        batch: Batch | None = None,
        **options: Unpack[EntrypointArguments],
    ) -> None:
        super().__init__(
            retry=retry,
            requeue_on_error=requeue_on_error,
            kill_switch=kill_switch,
            key=key,
            parks=parks,
            batch=batch,
            **options,
        )
        if handler_type not in HANDLER_TYPES:
            raise ConfigError(
                f"handler_type={handler_type!r}: expected one of {', '.join(HANDLER_TYPES)}."
            )
        self.source_service = source_service
        self.event_type = event_type
        self.handler_type = handler_type
        if reliable_delivery is None:
            reliable_delivery = handler_type != BROADCAST or self._has_own_identifier()
        self.reliable_delivery = reliable_delivery
        self.queue_type = queue_type
        self._identifier = uuid.uuid4().hex

    @property
    def broadcast_identifier(self) -> str:
        """What tells the instances of a BROADCAST handler apart. Override it with something that lasts (a host
        name, say) to use BROADCAST with reliable delivery."""
        return self._identifier

    def _has_own_identifier(self) -> bool:
        return type(self).broadcast_identifier is not EventHandler.broadcast_identifier

    def topology(self) -> tuple[Queue, list[Exchange | Queue | Binding]]:
        if (
            self.handler_type == BROADCAST
            and self.reliable_delivery
            and not self._has_own_identifier()
        ):
            raise ConfigError(
                f"{self.container.service_name}.{self.method_name}: BROADCAST with reliable_delivery needs an "
                "identifier that outlives the process. Override EventHandler.broadcast_identifier, or set "
                "reliable_delivery=False."
            )
        config = self.container.config
        exchange = event_exchange(self.source_service, config)
        name = handler_queue_name(
            self.handler_type,
            self.source_service,
            self.event_type,
            self.container.service_name,
            self.method_name,
            self.broadcast_identifier,
        )
        queue = self._queue_of(name)
        declare_exchange = config.get("DECLARE_EVENT_EXCHANGES") is not False
        exchanges = [exchange] if declare_exchange else []
        return queue, [*exchanges, queue, Binding(name, exchange.name, self.event_type)]

    def dead_letter_queue(self) -> str:
        """`<queue>.dead`. Instances that are told apart by a number made at their start share one, named after what they
        have in common: or each start would leave a queue behind that nobody knows."""
        if self.handler_type == BROADCAST and not self._has_own_identifier():
            shared = handler_queue_name(
                SERVICE_POOL,
                self.source_service,
                self.event_type,
                self.container.service_name,
                self.method_name,
            )
            return dead_letter_queue_name(shared)
        return super().dead_letter_queue()

    def _queue_of(self, name: str) -> Queue:
        if not self.reliable_delivery:
            # Quorum queues can be neither exclusive nor deleted with their last consumer.
            exclusive = self.handler_type == BROADCAST
            return Queue(name, exclusive=exclusive, auto_delete=True)
        queue_type = self.queue_type or self.container.settings.mycelia.event_queue_type
        if queue_type == "classic":
            return Queue(name)
        return Queue(name, arguments={"x-queue-type": queue_type})


event_handler = decorator_of(
    "event_handler",
    EventHandler,
    'Make a method handle events: `@event_handler("source_service", "event_type")`.',
)
