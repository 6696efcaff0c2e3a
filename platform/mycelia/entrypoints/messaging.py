"""`@consume`: a method that handles the messages of any queue, declared by the user."""

from __future__ import annotations

from typing import Unpack

from msgspec import UNSET, UnsetType

from mycelia.amqp import Binding, Exchange, Queue
from mycelia.entrypoints.batches import Batch
from mycelia.entrypoints.dead_letters import dead_letter_queue_name
from mycelia.entrypoints.keys import MessageKey
from mycelia.entrypoints.subscription import Subscription
from mycelia.policies.kill_switch import KillSwitch
from mycelia.policies.retry import Retry
from mycelia.runtime import EntrypointArguments, decorator_of
from mycelia.runtime.topology import QueueLike, queue_topology

__all__ = ["Consumer", "consume"]


class Consumer(Subscription):
    """The entrypoint behind `@consume`.

    Args:
        queue: a name (a durable quorum queue is declared), a `mycelia.Queue`, or a `kombu.Queue` as in Nameko. A queue
            without a name is one of this instance's own: it should be `exclusive`, or each start leaves one behind.
        requeue_on_error: Nameko's word for a policy; see `Subscription`.
        retry: when a message whose method raises is tried again: `Retry(…)`, or `None` for never. By default after 1 s, 5 s,
            30 s, 5 min and 30 min, unless the configuration says otherwise.
        kill_switch: stop taking messages when the method fails too often (`KillSwitch`); as the setting `mycelia.kill_switch` says
            by default, which is never.
        key: a field of the payload, or a function of it: what has the same key is handled in the order of the queue, one after
            the other, and what fails is tried again in its place.
        parks: once a message of a key is dead-lettered, all that follow it are as well, until they are redriven.
        batch: `Batch(size=500, within=0.2)`: the method is given lists of payloads. It returns `None`, or for each of them what came of it.
    """

    def __init__(
        self,
        queue: str | Queue | QueueLike,
        requeue_on_error: bool = False,
        *,
        retry: Retry | UnsetType | None = UNSET,
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
        queue_topology(queue)  # what is no queue is said where it is written
        self.queue = queue

    def topology(self) -> tuple[Queue, list[Exchange | Queue | Binding]]:
        return queue_topology(self.queue, called=self._called)

    def dead_letter_queue(self) -> str:
        """`<queue>.dead`; instances whose queue has another name at each start share one, named after the method."""
        if isinstance(self.queue, str) or self.queue.name:
            return super().dead_letter_queue()
        return dead_letter_queue_name(self._called)

    @property
    def _called(self) -> str:
        return f"{self.container.service_name}.{self.method_name}"


consume = decorator_of(
    "consume",
    Consumer,
    'Make a method handle the messages of a queue: `@consume("imports")`.',
)
