"""Who of a fleet runs a timer: the glue between `TickRegister` and the broker.

**The lease is a place at a queue** with a single active consumer, which the broker gives to another as soon as its holder's
connection is gone. A holder whose process stands still keeps its connection until the broker has missed two of its heartbeats;
so leases have a link of their own, whose heartbeat is `HEARTBEAT` seconds (the ordinary one's is 60).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from random import uniform
from typing import Final, Literal

import msgspec

from mycelia.amqp import (
    ConsumeOptions,
    Delivery,
    Link,
    LinkConsumer,
    LinkOptions,
    Message,
    Properties,
    Queue,
    connect,
)
from mycelia.entrypoints.tick_register import TickEntry, TickRegister, Verdict, read_tick_entry
from mycelia.errors import LinkError
from mycelia.log_event import event
from mycelia.runtime import SharedExtension

__all__ = ["LeaseLink", "TickLease", "lease_queue_name"]

log = logging.getLogger("mycelia.entrypoints")

HEARTBEAT: Final = 4
"""Seconds. A process that stands still loses its leases after two to three of them; an event loop that is blocked for as long
loses them as well."""

CLAIM_TIMEOUT: Final = 5.0
"""Seconds for a claim to come back. It takes milliseconds; after this something is wrong, and it is looked at anew."""

SETTLED_AFTER: Final = 2.0
"""Seconds that a holder waits for word of what has been done, before it takes the queue for new. A former holder that is closing
its channel has it, for the time of one question to the broker."""

REMIND_EVERY: Final = 60.0
"""Seconds after which who waits says again that there is something to do: the queue may have been deleted, and made anew."""

REMIND_AFTER_LOSS: Final = 1.0


def lease_queue_name(service: str, method: str) -> str:
    """The queue that holds how far a timer of a fleet has come."""
    return f"timer-{service}.{method}"


class LeaseLink(SharedExtension):
    """The link of a service's leases, with a short heartbeat. A broker in memory has none to miss: there it is the host's."""

    needs_broker = True

    def __init__(self) -> None:
        self._own: Link | None = None

    async def setup(self) -> None:
        assert self.container is not None
        settings = self.container.settings
        if settings.AMQP_URI.startswith("memory:"):
            return
        self._own = connect(
            _with_heartbeat(settings.AMQP_URI),
            LinkOptions(
                ssl=settings.AMQP_SSL,
                heartbeat=HEARTBEAT,
                name="mycelia-lease",
                connect_timeout=settings.mycelia.connect_timeout,
                peer_timeout=settings.mycelia.peer_timeout,
            ),
        )
        await self._own.open()

    @property
    def link(self) -> Link:
        """To be asked for from `start()` on."""
        assert self.container is not None
        return self.container.host.link if self._own is None else self._own

    async def stop(self) -> None:
        if self._own is not None:
            await self._own.aclose()


def _with_heartbeat(uri: str) -> str:
    """The URI with our heartbeat in place of one that it names, which would go before."""
    return re.sub(r"([?&]heartbeat=)[^&;#]*", rf"\g<1>{HEARTBEAT}", uri)


class TickLease:
    """One timer's place at its queue.

    Args:
        link: an open link, for leases.
        service, method: whose timer it is.
        on_change: told, on the loop, when the lease has been gained or lost.
        now: the wall clock, in seconds.
    """

    def __init__(
        self,
        link: Link,
        service: str,
        method: str,
        *,
        on_change: Callable[[], None],
        now: Callable[[], float] = lambda: time.time(),  # asked each time: a test may move it
    ) -> None:
        self._link = link
        self._name = f"{service}.{method}"
        self._queue = lease_queue_name(service, method)
        self._on_change = on_change
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._register = TickRegister()
        self._kept: Delivery | None = None
        self._consumer: LinkConsumer | None = None
        self._claim = ""
        self._claimed: asyncio.Future[bool] | None = None
        self._reminder: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None

    @property
    def is_held(self) -> bool:
        """Whether this instance is the one that ticks, as far as it knows."""
        kept = self._kept
        return self._register.is_holder and kept is not None and not kept.is_lost

    @property
    def last(self) -> float:
        """The last tick that was begun, by whomever, in seconds since the epoch; of a lease that is held."""
        last = self._register.last_ms
        assert last is not None
        # Half a millisecond more, so that it is not before the tick that it was rounded from.
        return last / 1000 + 0.0005

    async def open(self) -> None:
        """Take a place at the queue. Waits for the broker.

        Raises:
            TopologyError, AccessRefused: refused for good.
        """
        await self._link.declare(
            Queue(
                self._queue,
                arguments={"x-queue-type": "quorum", "x-single-active-consumer": True},
            )
        )
        self._consumer = await self._link.consume(
            self._queue, self._on_deliveries, ConsumeOptions(prefetch=50, on_lost=self._on_lost)
        )
        self._remind()

    async def claim(self, tick: float, *, again: bool = False) -> bool:
        """Whether this instance may begin `tick` now. Bounded; false as well if that cannot be known.

        Args:
            again: it has begun it before, and it has failed.
        """
        if not self.is_held:
            return False
        claim = self._claim = uuid.uuid4().hex
        self._register.claim(claim)
        claimed: asyncio.Future[bool] = self._loop.create_future()
        self._claimed = claimed
        try:
            kind: Literal["claim", "again"] = "again" if again else "claim"
            if not self._say(TickEntry(kind=kind, tick_ms=round(tick * 1000), claim=claim)):
                return False
            async with asyncio.timeout(CLAIM_TIMEOUT):
                return await claimed
        except TimeoutError:
            log.warning(event("timer_claim_lost", call=self._name, waited_s=CLAIM_TIMEOUT))
            return False
        finally:
            self._claimed = None
            self._register.claim("")

    async def aclose(self) -> None:
        """Leave the place to another. Idempotent; works with the broker down."""
        for handle in (self._reminder, self._settling):
            if handle is not None:
                handle.cancel()
        self._reminder = self._settling = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.aclose(3.0)

    # --- what the queue says --------------------------------------------------------------------

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        was_held = self.is_held
        inherited = False
        for delivery in deliveries:
            if delivery.is_lost:
                continue
            entry = read_tick_entry(delivery.body)
            if entry is None:
                log.warning(event("timer_entry_unreadable", queue=self._queue))
                delivery.ack()
                continue
            verdict = self._register.read(
                entry, redelivered=delivery.redelivered, now_ms=int(self._now() * 1000)
            )
            if verdict in (Verdict.DROP, Verdict.RUN_AGAIN):
                delivery.ack()
            else:
                kept, self._kept = self._kept, delivery
                if kept is not None:
                    kept.ack()
                inherited = delivery.redelivered and verdict is Verdict.KEEP
            claimed = self._claimed
            if claimed is not None and entry.claim == self._claim and not claimed.done():
                claimed.set_result(verdict in (Verdict.RUN, Verdict.RUN_AGAIN))
        if self._register.is_holder:
            self._holds(was_held, inherited)
        elif self._register.since_ms is not None and self._settling is None:
            self._settling = self._loop.call_later(SETTLED_AFTER, self._begin_anew)

    def _holds(self, was_held: bool, inherited: bool) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if inherited:
            # The broker drops a message that has come back too often (20 times, in RabbitMQ 4): as a new one it counts anew.
            self._say_done()
        if not was_held:
            log.info(event("timer_lease_held", call=self._name))
            self._on_change()

    def _begin_anew(self) -> None:
        self._settling = None
        self._say_done()

    def _on_lost(self) -> None:
        was_held = self._register.is_holder
        self._register.lost()
        self._kept = None
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self._claimed is not None and not self._claimed.done():
            self._claimed.set_result(False)
        if self._consumer is None:
            return  # closing
        if self._reminder is not None:
            self._reminder.cancel()
        self._reminder = self._loop.call_later(REMIND_AFTER_LOSS, self._remind)
        if was_held:
            log.warning(event("timer_lease_lost", call=self._name))
            self._on_change()

    # --- what is said there ---------------------------------------------------------------------

    def _remind(self) -> None:
        if not self.is_held:
            self._say(TickEntry(kind="since", tick_ms=int(self._now() * 1000)), expires=True)
        self._reminder = self._loop.call_later(REMIND_EVERY * uniform(0.75, 1.25), self._remind)

    def _say_done(self) -> None:
        register = self._register
        last = register.since_ms if register.last_ms is None else register.last_ms
        if last is not None:
            self._say(TickEntry(kind="done", tick_ms=last))

    def _say(self, entry: TickEntry, *, expires: bool = False) -> bool:
        """Publish it; what is lost on its way is said again, or not waited for any longer. Whether it has left."""
        properties = Properties(
            content_type="application/json",
            delivery_mode=2,
            expiration=str(int(REMIND_EVERY * 1000)) if expires else None,
        )
        try:
            self._link.publish_nowait(
                Message("", self._queue, msgspec.json.encode(entry), properties)
            )
        except LinkError as exc:
            log.debug(event("timer_entry_not_sent", queue=self._queue, reason=exc))
            return False
        return True
