"""`@consume`: a method that handles the messages of any queue, declared by the user."""

from __future__ import annotations

from typing import Unpack

from mycelia.amqp import Binding, Exchange, Queue
from mycelia.entrypoints.subscription import Subscription
from mycelia.runtime import EntrypointArguments, decorator_of
from mycelia.runtime.topology import QueueLike, queue_topology

__all__ = ["Consumer", "consume"]


class Consumer(Subscription):
    """The entrypoint behind `@consume`.

    Args:
        queue: a name (a durable quorum queue is declared), a `mycelia.Queue`, or a `kombu.Queue` as in Nameko.
        requeue_on_error: try again, with a growing delay, instead of dead-lettering at the first error.
    """

    def __init__(
        self,
        queue: str | Queue | QueueLike,
        requeue_on_error: bool = False,
        **options: Unpack[EntrypointArguments],
    ) -> None:
        super().__init__(requeue_on_error=requeue_on_error, **options)
        queue_topology(queue)  # what is no queue is said where it is written
        self.queue = queue

    def topology(self) -> tuple[Queue, list[Exchange | Queue | Binding]]:
        return queue_topology(self.queue)


consume = decorator_of(
    "consume",
    Consumer,
    'Make a method handle the messages of a queue: `@consume("imports")`.',
)
