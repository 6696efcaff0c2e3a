"""Dead letters: where a message goes that cannot be handled, with the reason, instead of vanishing.

The service publishes the message itself to `<queue>.dead` (confirmed, then the original is acknowledged), because a
queue declared exactly as Nameko declares it has no dead-letter arguments. So a crash in between leaves the message
in both places, never in neither.

Headers added to the message's own (docs/operating.md has them for its readers):

| header | type | meaning |
|---|---|---|
| `x-mycelia-reason` | str | `handler_error`, `undecodable`, `too_many_attempts`, `expired`, `rejected` |
| `x-mycelia-error-type`, `x-mycelia-error` | str | the error's class and text (the text cut at 4 KiB) |
| `x-mycelia-traceback` | str | cut at 16 KiB, the end kept |
| `x-mycelia-queue`, `-exchange`, `-routing-key` | str | where it came from; exchange and key as it was first published |
| `x-mycelia-service`, `x-mycelia-method` | str | who could not handle it |
| `x-mycelia-attempts` | int | how often it was tried |
| `x-mycelia-failed-at-ms`, `x-mycelia-first-failed-at-ms` | int | when it failed last, and first; wall clock, milliseconds since the epoch |
| `x-mycelia-trace-id` | str | of the trace that it belongs to (32 hex digits), where it brought a `traceparent` |
| `x-mycelia-left-out` | str | headers and properties of the message that were too large, or cannot be sent |

What becomes of its properties: `republished`. Nothing that a message or an error holds can keep it from being buried; what
is left are faults of the broker or its configuration. Then it is tried again with growing pauses, `GIVE_UP_PAUSES_S`, and only
then the message goes back to its queue, so that even a broker that takes nothing makes no hot loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from mycelia.amqp import Delivery, Message, Properties, Queue
from mycelia.entrypoints.moving import Mover
from mycelia.entrypoints.republished import (
    HEADER_LIMITS,
    QUEUE_HEADER,
    REASON_HEADER,
    dead_letter,
    dead_letter_headers,
    own_user,
)
from mycelia.entrypoints.statistics import DeadLetterStatistics
from mycelia.errors import LinkError, ProtocolError, Unroutable, describe
from mycelia.log_event import event
from mycelia.runtime import Container, SharedExtension

__all__ = ["DeadLetters", "dead_letter_queue", "dead_letter_queue_name"]

log = logging.getLogger("mycelia.entrypoints")

GIVE_UP_PAUSES_S: Final = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Before each further try when a dead letter could not be published. Arbitrary: a good two minutes, within the half hour for
which RabbitMQ lets a delivery be unsettled. After the last the message goes back to its queue."""

SUFFIX: Final = ".dead"

DELIVERY_LIMIT_ARGUMENT: Final = "x-delivery-limit"
NO_DELIVERY_LIMIT: Final = 1_000_000_000
"""How often a dead letter may be looked at: each look that gives it back counts as a delivery. Written as a number, because
without one RabbitMQ 4 drops a message at its 21st return (seen with 4.0.5, and 4.3.6 when channels end), and `-1`, which 4.x
takes for no limit, drops it at the first with 3.10.8. With a number, what is given back also keeps its place; without one
3.10 puts it at the end."""


def dead_letter_queue_name(queue: str) -> str:
    """The dead-letter queue of `queue`: its name with `.dead`; a name too long for that is cut, and told apart by a hash."""
    raw = queue.encode("utf-8", "surrogateescape")
    if len(raw) + len(SUFFIX) <= 255:
        return queue + SUFFIX
    import hashlib  # not at every start: few names are that long

    mark = "~" + hashlib.sha256(raw).hexdigest()[:16] + SUFFIX
    return raw[: 255 - len(mark)].decode("utf-8", "ignore") + mark


def dead_letter_queue(name: str) -> Queue:
    """How a dead-letter queue is declared: kept on a majority of nodes, and never emptied by looking into it."""
    arguments = {"x-queue-type": "quorum", DELIVERY_LIMIT_ARGUMENT: NO_DELIVERY_LIMIT}
    return Queue(name, arguments=arguments)


class DeadLetters(SharedExtension):
    """Moves messages of one container to their dead-letter queues."""

    needs_broker = True
    container: Container | None = None

    def __init__(self) -> None:
        self._movers: dict[str, Mover] = {}
        """For each queue that messages come from."""
        self._declaring: dict[str, asyncio.Task[None]] = {}
        """One declaration for each queue, however many wait for it; those that succeeded stay."""
        self._user: str | None = None
        self._buried = 0

    def setup(self) -> None:
        assert self.container is not None
        self._user = own_user(self.container.settings.AMQP_URI)

    def statistics(self) -> DeadLetterStatistics:
        under_way = sum(len(mover.deliveries) for mover in self._movers.values())
        return DeadLetterStatistics(buried=self._buried, under_way=under_way)

    def under_way(self, queue: str) -> list[Delivery]:
        """The messages of `queue` that are being buried."""
        mover = self._movers.get(queue)
        return [] if mover is None else mover.deliveries

    async def expect(self, dead_queue: str) -> None:
        """Have `dead_queue` declared, so that letters go there in the order in which they are buried. Raises nothing."""
        assert self.container is not None
        with suppress(LinkError):  # it is said when there is something to be buried
            await self._declare(dead_queue, self.container.host.settings.mycelia.publish_timeout)

    def bury(
        self,
        delivery: Delivery,
        *,
        queue: str,
        method: str,
        reason: str,
        attempts: int,
        error: BaseException | None = None,
        dead_queue: str | None = None,
        on_acknowledged: Callable[[Delivery], None] | None = None,
    ) -> None:
        """Publish `delivery` to its dead-letter queue, then acknowledge it. Does not wait; never raises.

        Args:
            queue: where it came from.
            method: which method could not handle it.
            attempts: how often it was tried.
            dead_queue: where to; `dead_letter_queue_name(queue)` by default.
            on_acknowledged: told when the message is there and acknowledged.
        """
        assert self.container is not None
        target = dead_letter_queue_name(queue) if dead_queue is None else dead_queue
        letter = _Letter(
            delivery,
            queue=queue,
            service=self.container.service_name,
            method=method,
            reason=reason,
            attempts=attempts,
            error=error,
            user=self._user,
        )

        def on_failure(exc: Exception, retry_in_s: float | None) -> None:
            log.error(
                event(
                    "dead_letter_failed",
                    queue=queue,
                    dead_letter_queue=target,
                    error=describe(exc),
                    retry_in_s=retry_in_s,
                    detail="the message goes back to its queue" if retry_in_s is None else None,
                )
            )

        def on_moved() -> None:
            self._buried += 1
            if on_acknowledged is not None:
                on_acknowledged(delivery)
            log.warning(
                event(
                    "delivery_dead_lettered",
                    queue=queue,
                    dead_letter_queue=target,
                    reason=reason,
                    error=None if error is None else describe(error),
                )
            )

        mover = self._movers.get(queue)
        if mover is None:
            mover = self._movers[queue] = Mover()
        mover.move(
            delivery,
            lambda: self._publish(letter, target),
            name=f"mycelia:dead:{queue}",
            pauses=GIVE_UP_PAUSES_S,
            on_failure=on_failure,
            on_moved=on_moved,
        )

    async def _publish(self, letter: _Letter, queue: str) -> None:
        """Put the letter into its queue.

        Raises:
            LinkError: that cannot be done now.
        """
        assert self.container is not None
        host = self.container.host
        timeout = host.settings.mycelia.publish_timeout
        await self._declare(queue, timeout)
        refusal: ProtocolError | None = None
        for properties in letter.forms():
            message = Message("", queue, letter.delivery.body, properties, mandatory=True)
            try:
                await host.link.publish(message, timeout=timeout)
            except ProtocolError as exc:  # the frame is smaller than hoped for
                refusal = exc
            except Unroutable:
                self._declaring.pop(queue, None)  # somebody deleted it: declare it for the next try
                raise
            else:
                return
        assert refusal is not None
        raise refusal

    async def _declare(self, queue: str, timeout: float) -> None:
        """Have `queue` declared, once for all that wait for it at once."""
        assert self.container is not None
        declaring = self._declaring.get(queue)
        if declaring is None or (declaring.done() and _failed(declaring)):
            declaring = self._declaring[queue] = asyncio.create_task(
                self.container.host.link.declare(dead_letter_queue(queue), timeout=timeout),
                name=f"mycelia:declare:{queue}",
            )
        if not declaring.done():
            await asyncio.wait([declaring])  # not cancelled with one of those who wait
        if declaring.cancelled():
            raise LinkError(f'queue "{queue}" cannot be declared: the service stops')
        declaring.result()

    async def stop(self) -> None:
        """Let what is under way reach its queue."""
        await asyncio.gather(*(mover.finish(5.0) for mover in self._movers.values()))
        for declaring in self._declaring.values():
            declaring.cancel()
        await asyncio.gather(*self._declaring.values(), return_exceptions=True)


def _failed(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is not None


class _Letter:
    """A message and why it could not be handled, in forms of decreasing size."""

    def __init__(
        self,
        delivery: Delivery,
        *,
        queue: str,
        service: str,
        method: str,
        reason: str,
        attempts: int,
        error: BaseException | None,
        user: str | None,
    ) -> None:
        self.delivery = delivery
        self._user = user
        try:
            self._headers = dead_letter_headers(
                delivery,
                queue=queue,
                service=service,
                method=method,
                reason=reason,
                attempts=attempts,
                error=error,
                now=time.time(),
            )
        except Exception:
            log.exception(event("dead_letter_without_story", queue=queue, reason=reason))
            self._headers = {REASON_HEADER: reason, QUEUE_HEADER: queue}

    def forms(self) -> Iterator[Properties]:
        """What to publish it with, the fullest form first."""
        for limit in HEADER_LIMITS:
            try:
                properties = dead_letter(self.delivery, self._headers, user=self._user, limit=limit)
            except Exception as exc:
                log.exception(event("dead_letter_form_failed", error=describe(exc)))
            else:
                yield properties
        bare = Properties(headers={"x-mycelia-left-out": "everything but the body"})
        bare.delivery_mode = 2
        yield bare
